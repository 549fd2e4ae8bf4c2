"""The command as a process: it starts, answers, and at SIGTERM answers what is in flight before it ends."""

import re
import signal
import socket
import subprocess
import sys

import httpx
import pytest

from tests.serving.test_api import folder, picture  # noqa: F401


@pytest.mark.slow
def test_a_request_in_flight_at_sigterm_is_answered(folder):  # noqa: F811
    command = [sys.executable, "-m", "scalablevit", "serve", str(folder), "--port", "0", "--no-page", "--device", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        port = int(re.findall(r"127\.0\.0\.1:(\d+)/", server.stdout.readline())[0])
        assert httpx.get(f"http://127.0.0.1:{port}/health").json()["status"] == "ok"
        body = picture()
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode())
            client.sendall(body[:100])
            # Another request on the side: when it is answered, the first has begun.
            assert httpx.post(f"http://127.0.0.1:{port}/predict", content=body).status_code == 200
            server.send_signal(signal.SIGTERM)
            client.sendall(body[100:])
            answer = b""
            while chunk := client.recv(65536):
                answer += chunk
        assert answer.startswith(b"HTTP/1.1 200")
        assert b'"labels"' in answer
        assert server.wait(30) == 0
        assert server.stderr.read() == ""


@pytest.mark.slow
def test_broken_forms_are_answered_and_leave_standard_error_empty(folder):  # noqa: F811
    command = [sys.executable, "-m", "scalablevit", "serve", str(folder), "--port", "0", "--no-page", "--device", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        port = int(re.findall(r"127\.0\.0\.1:(\d+)/", server.stdout.readline())[0])
        for content in (
            b"",
            b"no boundary",
            b"--a\r\nContent-Disposition\xff: form-data\r\n\r\nx\r\n",
            b"--a--\r\n\r\nmore",
        ):
            answer = httpx.post(
                f"http://127.0.0.1:{port}/predict",
                content=content,
                headers={"Content-Type": "multipart/form-data; boundary=a"},
            )
            assert answer.status_code == 400
            assert answer.json()["detail"].startswith("the form ")
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0
        assert server.stderr.read() == ""


@pytest.mark.slow
def test_sigterm_before_the_first_request_ends_it_too(folder):  # noqa: F811
    command = [sys.executable, "-m", "scalablevit", "serve", str(folder), "--port", "0", "--no-page", "--device", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        server.stdout.readline()
        server.send_signal(signal.SIGTERM)  # when it listens, but may not have begun to answer
        assert server.wait(30) == 0
        assert server.stderr.read() == ""
