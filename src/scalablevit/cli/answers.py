"""The verbs that ask a trained model: predict, explain and serve."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from scalablevit.cli.arguments import RUN_HELP, RUN_OR_EXPORT_HELP, Verb, add_device_argument
from scalablevit.cli.messages import print_json, printable

if TYPE_CHECKING:
    from scalablevit.classification.prediction import FailedPrediction
    from scalablevit.explanation import Explanation


def _add_predict_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", help=RUN_OR_EXPORT_HELP)
    parser.add_argument("images", nargs="+", help="Image files, folders of them, or patterns such as 'photos/*.jpg'.")
    parser.add_argument("--top", type=int, default=5, help="How many classes to give for each image.")
    parser.add_argument("--batch_size", type=int, default=32, help="Images at once.")
    parser.add_argument("--workers", type=int, help="Threads that read images; default: one per processor core.")
    parser.add_argument("--json", action="store_true", help="A line of JSON for each image.")
    add_device_argument(parser)


def _predict(arguments: Namespace) -> int:
    from scalablevit.classification.image_inputs import count_files, other_images
    from scalablevit.classification.prediction import FailedPrediction
    from scalablevit.classification.predictor import Predictor
    from scalablevit.display import count_along

    names = ("top", "batch_size", "device", "workers")
    predictor = Predictor(arguments.run, **{name: arguments[name] for name in names})
    count = count_files(arguments.images)
    failed = 0
    for prediction in count_along(predictor.stream(arguments.images), count):
        if isinstance(prediction, FailedPrediction):
            failed += 1
            _tell_failure(prediction)
        elif arguments.json:
            print_json(prediction.to_json())
        else:
            classes = zip(prediction.labels, prediction.probabilities, strict=True)
            named = ", ".join(f"{label} {100 * value:.1f} %" for label, value in classes)
            print(printable(f"{prediction.path}: {named}"))
    if others := other_images(arguments.images):
        endings = ", ".join(sorted({path.suffix.lower() for path in others}))
        print(
            printable(
                f"scalablevit: warning: images left out, of kinds that are not looked for in folders ({endings}):"
                f" {len(others)}, for example {others[0]}; convert them to JPEG or PNG"
            ),
            file=sys.stderr,
        )
    return 1 if failed else 0


def _tell_failure(failed: FailedPrediction) -> None:
    print(printable(f"scalablevit: error: {' '.join(failed.reason.split())}"), file=sys.stderr)


def _add_explain_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", help=RUN_HELP)
    parser.add_argument("images", nargs="+", help="Image files, folders of them, or patterns such as 'photos/*.jpg'.")
    parser.add_argument(
        "--out", metavar="FILE", help="A .png of one image, or an .html of any number. Default: explanation.png, .html."
    )
    parser.add_argument("--overwrite", action="store_true", help="Replace an earlier file there.")
    parser.add_argument("--label", help="The class to find the evidence for; default: the most probable one.")
    parser.add_argument("--stages", type=int, nargs="+", help="Stages to show the attention of, from 1.")
    parser.add_argument("--heads", type=int, nargs="+", help="Which of their heads, from 1; default: the mean of all.")
    parser.add_argument(
        "--points",
        nargs="+",
        metavar="X,Y",
        help="From where the attention is looked at, from 0,0 (upper left) to 1,1, or 'all'; default: from where the"
        " evidence is strongest.",
    )
    parser.add_argument(
        "--method", default="integrated-gradients", help="How evidence is found: integrated-gradients, or grad-cam."
    )
    add_device_argument(parser)


def _explain(arguments: Namespace) -> int:
    from scalablevit.classification.prediction import FailedPrediction
    from scalablevit.explanation import Question, explain_each
    from scalablevit.explanation.explaining import parse_points
    from scalablevit.explanation.writing import default_out, write

    points = None if arguments.points is None else parse_points(arguments.points)
    options = {name: arguments[name] for name in ("stages", "heads", "label", "method")}
    out = default_out(arguments.images) if arguments.out is None else Path(arguments.out)
    question = Question(points=points, **options)
    found = explain_each(
        arguments.run, arguments.images, question, out=out, device=arguments.device, overwrite=arguments.overwrite
    )
    failed = 0

    def told() -> Iterator[Explanation]:
        nonlocal failed
        for each in found:
            if isinstance(each, FailedPrediction):
                failed += 1
                _tell_failure(each)
            else:
                print(printable(f"{each.path}: {each.answer}"))
                yield each

    if write(told(), out, run=arguments.run):
        print(f"{'Picture' if out.suffix.lower() == '.png' else 'Page'}: {out}")
    return 1 if failed else 0


def _add_serve_arguments(parser: ArgumentParser) -> None:
    from scalablevit.serving.options import ServingOptions

    parser.add_argument("run", help=RUN_OR_EXPORT_HELP)
    parser.add_class_arguments(ServingOptions, nested_key=None, skip={"page"})
    parser.add_argument("--no_page", action="store_true", help="The API alone, without the web page and Gradio.")
    add_device_argument(parser)


def _serve(arguments: Namespace) -> None:
    from scalablevit.serving import ServingOptions, serve

    options = {field.name: arguments[field.name] for field in fields(ServingOptions) if field.name in arguments}
    if options["token"] is None:
        del options["token"]  # that of the environment
    serve(arguments.run, device=arguments.device, page=not arguments.no_page, **options)


PREDICT = Verb(summary="Name the most probable classes of images.", add_arguments=_add_predict_arguments, run=_predict)
EXPLAIN = Verb(
    summary="Show what a trained model looks at in images.", add_arguments=_add_explain_arguments, run=_explain
)
SERVE = Verb(
    summary="Serve a trained model: an HTTP API and a web page.", add_arguments=_add_serve_arguments, run=_serve
)
