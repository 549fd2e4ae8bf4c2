"""The verbs that write a model in another form: export and convert."""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace

from scalablevit.cli.arguments import DATA_HELP, LISTS, RUN_HELP, Verb, whole_or_none


def _add_export_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", help=RUN_HELP)
    parser.add_argument("--out", required=True, help="The file to write.")
    parser.add_argument(
        "--to", help="onnx, openvino, pt2 or aoti; default: by the ending of --out (.onnx, .xml, .pt2)."
    )
    parser.add_argument(
        "--int8", action="store_true", help="Quantise; needs --calibrate and --data. ONNX and OpenVINO."
    )
    parser.add_argument("--bf16", action="store_true", help="Have OpenVINO compute in bfloat16; needs --data.")
    parser.add_argument("--calibrate", metavar="FOLDER", help="Images like those to come, for --int8; or 'sample'.")
    parser.add_argument("--calibration_images", type=int, default=256, help="How many of them, at most.")
    parser.add_argument("--data", help=f"To compare the accuracy on, before and after. {DATA_HELP}")
    parser.add_argument("--split", help="Of the data: train, val or test; default: val, or all.")
    parser.add_argument("--max_lost", type=float, default=0.5, help="Points of accuracy that may be lost, at most.")
    parser.add_argument("--overwrite", action="store_true", help="Replace a file that is there.")


def _export(arguments: Namespace) -> None:
    from scalablevit.classification.exports import export
    from scalablevit.display import show_export

    names = ("to", "int8", "bf16", "calibrate", "calibration_images", "data", "split", "max_lost", "overwrite")
    show_export(export(arguments.run, arguments.out, **{name: arguments[name] for name in names}))


def _add_convert_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "source", help=f"{RUN_HELP} Or a file of this package, of vit-pytorch or of the paper's authors."
    )
    parser.add_argument("destination", help="A folder, for this package's layout; or a .safetensors, .pth or .pt file.")
    parser.add_argument("--model", help="The variant that the weights are of; needed for a file of this package.")
    parser.add_argument("--to", default="scalablevit", help="scalablevit, vit-pytorch or paper.")
    parser.add_argument("--heads", type=int, nargs="+", help=LISTS["heads"])
    parser.add_argument("--window_size", type=whole_or_none, nargs="+", help=LISTS["window_size"])
    parser.add_argument("--overwrite", action="store_true", help="Replace what is at the destination.")


def _convert(arguments: Namespace) -> None:
    from scalablevit.classification.weight_files import convert

    names = ("model", "to", "heads", "window_size", "overwrite")
    result = convert(arguments.source, arguments.destination, **{name: arguments[name] for name in names})
    print(
        f"{result.path}: {result.architecture}, {result.parameters} parameters, from the layout {result.source} to"
        f" {result.target}",
        *result.checks,
        sep="\n",
    )


EXPORT = Verb(
    summary="Write a trained model as ONNX, OpenVINO or a PyTorch program.",
    add_arguments=_add_export_arguments,
    run=_export,
)
CONVERT = Verb(
    summary="Write weights in another layout, and prove it.", add_arguments=_add_convert_arguments, run=_convert
)
