"""The ten digits as a person may draw them: strokes of points, from 0 to 1, y downwards."""

import io
import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Point = tuple[float, float]
Stroke = list[Point]


def arc(x: float, y: float, rx: float, ry: float, start: float, end: float) -> Stroke:
    """Points of an ellipse around x, y; degrees, clockwise from the right."""
    steps = 16
    angles = [math.radians(start + (end - start) * step / steps) for step in range(steps + 1)]
    return [(x + rx * math.cos(angle), y + ry * math.sin(angle)) for angle in angles]


DIGITS: dict[str, list[Stroke]] = {
    "0": [arc(0.5, 0.5, 0.2, 0.3, -90, 270)],
    "1": [[(0.42, 0.3), (0.52, 0.2), (0.5, 0.8)]],
    "2": [[*arc(0.5, 0.37, 0.19, 0.17, -165, 40), (0.32, 0.78), (0.72, 0.78)]],
    "3": [[*arc(0.48, 0.35, 0.18, 0.15, -150, 90), *arc(0.48, 0.64, 0.2, 0.16, -80, 150)]],
    "4": [[(0.4, 0.2), (0.3, 0.52), (0.7, 0.5)], [(0.63, 0.22), (0.58, 0.82)]],
    "5": [[(0.68, 0.22), (0.4, 0.22), (0.37, 0.46), *arc(0.48, 0.62, 0.2, 0.18, -110, 140)]],
    "6": [[(0.62, 0.2), (0.42, 0.42), *arc(0.5, 0.64, 0.16, 0.16, -170, 190)]],
    "7": [[(0.3, 0.24), (0.7, 0.22), (0.58, 0.5), (0.46, 0.82)]],
    "8": [[*arc(0.5, 0.35, 0.15, 0.15, 70, -250), *arc(0.5, 0.66, 0.18, 0.16, -100, 260)]],
    "9": [[*arc(0.5, 0.38, 0.16, 0.16, -30, -360), (0.66, 0.4), (0.62, 0.6), (0.56, 0.82)]],
}


def moved(strokes: list[Stroke], *, size: float, x: float, y: float, slant: float) -> list[Stroke]:
    """The same in another size and place, and slanted."""
    return [
        [(x + size * (a - 0.5 - slant * (b - 0.5)), y + size * (b - 0.5)) for a, b in stroke]
        for stroke in strokes
    ]


def photographed(strokes: list[Stroke], *, shadow: int, seed: int) -> bytes:
    """A JPEG of a digit somewhere on a sheet of paper, which grows darker to the right."""
    noise = np.random.default_rng(seed)
    width, height, size = 1200, 900, 500
    paper = Image.new("L", (width, height), 215)
    x, y = noise.integers(100, 600), noise.integers(50, 350)
    for stroke in strokes:
        points = [(x + size * a, y + size * b) for a, b in stroke]
        ImageDraw.Draw(paper).line(points, fill=50, width=18, joint="curve")
    soft = np.asarray(paper.filter(ImageFilter.GaussianBlur(3)), np.float64)
    seen = soft - np.linspace(0, shadow, width) + noise.normal(0, 6, soft.shape)
    file = io.BytesIO()
    Image.fromarray(seen.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=85)
    return file.getvalue()
