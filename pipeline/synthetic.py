"""Synthetic images with known answers, for the demo, the tests and the benchmarks."""

from patchdrive.pipeline.synthetic_field import Canvas, draw_canvas, training_field
from patchdrive.pipeline.synthetic_scene import Landscape, SceneTruth, draw_landscape, scene_field, write_scene
from patchdrive.pipeline.synthetic_slide import SlideTruth, write_slide

__all__ = [
    "Canvas",
    "Landscape",
    "SceneTruth",
    "SlideTruth",
    "draw_canvas",
    "draw_landscape",
    "scene_field",
    "training_field",
    "write_scene",
    "write_slide",
]
