"""Draws docs/images/network.svg: the four stages, and what the two attentions see.

python docs/images/draw_network.py
"""

from pathlib import Path

WIDTH, HEIGHT = 960, 400
INK, SOFT, SSA, IWSA, LIM = "#24292f", "#8c959f", "#2f6fd0", "#e08a00", "#1a9a6c"
FONT = "font-family='Helvetica, Arial, sans-serif'"


def text(
    x: float, y: float, words: str, size: int = 13, colour: str = INK, anchor: str = "middle", bold: bool = False
) -> str:
    weight = " font-weight='bold'" if bold else ""
    return (
        f"<text x='{x}' y='{y}' {FONT} font-size='{size}' fill='{colour}' text-anchor='{anchor}'{weight}>{words}</text>"
    )


def box(
    x: float, y: float, w: float, h: float, fill: str, stroke: str = INK, opacity: float = 1.0, width: float = 1.0
) -> str:
    return (
        f"<rect x='{x}' y='{y}' width='{w}' height='{h}' fill='{fill}' fill-opacity='{opacity}' stroke='{stroke}'"
        f" stroke-width='{width}' rx='2'/>"
    )


def arrow(x1: float, y1: float, x2: float, y2: float, colour: str = SOFT) -> str:
    return (
        f"<line x1='{x1}' y1='{y1}' x2='{x2}' y2='{y2}' stroke='{colour}' stroke-width='1.6' marker-end='url(#tip)'/>"
    )


def line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f"<line x1='{x1}' y1='{y1}' x2='{x2}' y2='{y2}' stroke='{INK}' stroke-width='1.4'/>"


def grid(x: float, y: float, cells: int, cell: float, paint: dict[tuple[int, int], tuple[str, float]]) -> str:
    parts = []
    for row in range(cells):
        for column in range(cells):
            fill, opacity = paint.get((row, column), ("#ffffff", 1.0))
            parts.append(box(x + column * cell, y + row * cell, cell, cell, fill, "#d0d7de", opacity, 0.7))
    parts.append(f"<rect x='{x}' y='{y}' width='{cells * cell}' height='{cells * cell}' fill='none' stroke='{INK}'/>")
    return "".join(parts)


def stages() -> str:
    parts = [text(20, 34, "Four stages", 16, anchor="start", bold=True)]
    x, sides = 136, (92, 66, 46, 32)
    parts += [box(20, 76, 74, 74, "#f6f8fa"), text(57, 118, "image"), arrow(98, 113, 130, 113)]
    for index, side in enumerate(sides):
        top = 113 - side / 2
        parts.append(box(x, top, side, side, "#eaf2fd", SSA))
        parts.append(text(x + side / 2, 180, f"stage {index + 1}", 12))
        parts.append(text(x + side / 2, 196, f"1/{4 * 2**index}", 12, SOFT))
        x += side + 8
        parts.append(arrow(x, 113, x + 30, 113))
        x += 38
    parts.append(box(x, 96, 66, 34, "#f6f8fa"))
    parts.append(text(x + 33, 117, "classes", 12))
    x = 664
    parts.append(text(x, 34, "One layer", 16, anchor="start", bold=True))
    blocks = [("SSA", SSA), ("feed-forward", SOFT), ("PEG", LIM), ("feed-forward", SOFT), ("IWSA", IWSA)]
    for index, (name, colour) in enumerate(blocks):
        y = 50 + index * 30
        parts.append(box(x, y, 130, 22, colour, colour, 0.16))
        parts.append(text(x + 65, y + 15, name, 12))
        if index:
            parts.append(arrow(x + 65, y - 8, x + 65, y - 1))
    parts.append(text(x + 144, 66, "vit-pytorch's order;", 12, SOFT, "start"))
    parts.append(text(x + 144, 82, "the paper: IWSA first", 12, SOFT, "start"))
    parts.append(text(x + 144, 126, "in a stage's first layer", 12, SOFT, "start"))
    return "".join(parts)


def attentions() -> str:
    cell, top = 16, 256
    query = {(2, 3): (SSA, 1.0)}
    parts = [text(20, 240, "SSA: every position sees the whole map, reduced", 14, anchor="start", bold=True)]
    parts.append(grid(20, top, 8, cell, query))
    parts.append(grid(210, top + 32, 4, cell, {(r, c): (SSA, 0.22) for r in range(4) for c in range(4)}))
    for row in range(4):
        parts.append(
            f"<line x1='{20 + 3.5 * cell}' y1='{top + 2.5 * cell}' x2='208' y2='{top + 40 + row * cell}'"
            f" stroke='{SSA}' stroke-width='1' stroke-opacity='0.55'/>"
        )
    parts.append(text(242, top + 114, "keys and values", 12, SOFT))
    parts.append(text(242, top + 128, "1/r in height and width", 12, SOFT))
    left = 520
    window = {(r, c): (IWSA, 0.3) for r in range(4) for c in range(4)}
    window[2, 3] = (IWSA, 1.0)
    parts.append(text(left, 240, "IWSA: its own window, and LIM across the border", 14, anchor="start", bold=True))
    parts.append(grid(left, top, 8, cell, window))
    parts.append(box(left + 2 * cell, top + cell, 3 * cell, 3 * cell, "none", LIM, 1.0, 2.6))
    middle = 4 * cell
    parts.append(line(left + middle, top, left + middle, top + 2 * middle))
    parts.append(line(left, top + middle, left + 2 * middle, top + middle))
    parts.append(box(left + 160, top + 16, 14, 14, IWSA, INK, 1.0, 0.7))
    parts.append(text(left + 182, top + 28, "a query", 12, SOFT, "start"))
    parts.append(box(left + 160, top + 42, 14, 14, IWSA, "#d0d7de", 0.3, 0.7))
    parts.append(text(left + 182, top + 54, "what it attends to: its window", 12, SOFT, "start"))
    parts.append(box(left + 160, top + 68, 14, 14, "none", LIM, 1.0, 2.6))
    parts.append(text(left + 182, top + 80, "what LIM adds: a 3x3 convolution", 12, SOFT, "start"))
    parts.append(text(left + 182, top + 95, "of the values, over the whole map", 12, SOFT, "start"))
    return "".join(parts)


def main() -> None:
    tip = (
        f"<defs><marker id='tip' viewBox='0 0 8 8' refX='7' refY='4' markerWidth='6' markerHeight='6' orient='auto'>"
        f"<path d='M0 0 L8 4 L0 8 z' fill='{SOFT}'/></marker></defs>"
    )
    picture = (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {HEIGHT}' width='{WIDTH}' height='{HEIGHT}'>"
        f"{tip}{box(0, 0, WIDTH, HEIGHT, '#ffffff', '#ffffff')}{stages()}{attentions()}</svg>\n"
    )
    Path(__file__).with_name("network.svg").write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    main()
