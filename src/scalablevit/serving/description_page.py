"""The description of the API as a page that needs nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:46rem;margin:2rem auto;padding:0 1rem;color:#1f2933}"
    "code{background:#eef1f4;border-radius:4px;padding:.1rem .3rem}td,th{text-align:left;padding:.2rem 1rem .2rem 0}"
)


def describe(schema: dict[str, Any]) -> str:
    """A page of HTML.

    Args:
        schema: The OpenAPI schema of the server.
    """
    title = escape(f"{schema['info']['title']} {schema['info']['version']}")
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{title}</title><style>{_STYLE}</style><h1>{title}</h1><p>{escape(schema['info']['description'])}</p>"
        f'{"".join(_operations(schema))}<p>The same for programs: <a href="openapi.json">openapi.json</a></p></html>'
    )


def _operations(schema: dict[str, Any]) -> Iterator[str]:
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            yield f"<h2><code>{escape(method.upper())} {escape(path)}</code></h2>"
            yield f"<p>{escape(operation.get('description', ''))}</p>"
            rows = [
                (f"?{parameter['name']}=", parameter["schema"].get("description", parameter.get("description", "")))
                for parameter in operation.get("parameters", [])
            ]
            rows += [("body", kind) for kind in operation.get("requestBody", {}).get("content", {})]
            rows += [(status, answer["description"]) for status, answer in operation["responses"].items()]
            cells = (f"<tr><td><code>{escape(name)}</code></td><td>{escape(what)}</td></tr>" for name, what in rows)
            yield f"<table>{''.join(cells)}</table>"
