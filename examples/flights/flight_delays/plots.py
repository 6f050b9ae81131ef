"""Plots drawn by hand: a picture of two hundred numbers needs no plotting library in the environment."""

SIDE, EDGE, MOST_POINTS = 280, 36, 200


def draw_roc(false_positives, true_positives):
    """The ROC curve as SVG."""
    every = max(1, len(false_positives) // MOST_POINTS)
    curve = [*zip(false_positives[::every], true_positives[::every], strict=True), (1, 1)]
    points = " ".join(f"{EDGE + SIDE * x:.1f},{EDGE + SIDE * (1 - y):.1f}" for x, y in curve)
    middle, end = EDGE + SIDE / 2, EDGE + SIDE
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {end + EDGE} {end + EDGE}" font-family="sans-serif" font-size="12">
<rect width="100%" height="100%" fill="white"/>
<rect x="{EDGE}" y="{EDGE}" width="{SIDE}" height="{SIDE}" fill="none" stroke="#999"/>
<line x1="{EDGE}" y1="{end}" x2="{end}" y2="{EDGE}" stroke="#bbb" stroke-dasharray="4"/>
<polyline points="{points}" fill="none" stroke="#0a7d5a" stroke-width="2"/>
<text x="{middle}" y="{end + 20}" text-anchor="middle">on-time flights called late</text>
<text transform="translate({EDGE - 12},{middle}) rotate(-90)" text-anchor="middle">late flights found</text>
</svg>
"""
