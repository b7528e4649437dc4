"""docs/store.schema.json describes every piece of metadata of every kind of store, and refuses what is none."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from affine import Affine
from jsonschema import Draft202012Validator
from pyproj import CRS

from patchdrive.models import load_model
from patchdrive.models.config import PatchDriveNetConfig
from patchdrive.models.model import patchdrivenet
from patchdrive.models.types import ModelSpec, OutputSpec
from patchdrive.pipeline import RunSettings, run
from patchdrive.pipeline.glance import traits_of
from patchdrive.readers import MemoryImage

SCHEMA = json.loads((Path(__file__).parent.parent / "docs" / "store.schema.json").read_text())


def metadata(store):
    return {path.relative_to(store).as_posix(): json.loads(path.read_text()) for path in store.rglob("zarr.json")}


def image(**place):
    return MemoryImage([np.random.default_rng(0).integers(60, 250, (600, 700, 3)).astype(np.uint8)], nodata=0.0, **place)


PLACES = {
    "slide": {"mpp": (0.5, 0.5)},
    "scene": {"transform": Affine(10, 0, 5e5, 0, -10, 5e6), "crs": CRS.from_epsg(32633)},
    "rotated": {"transform": Affine(10, 1, 5e5, 1, -10, 5e6), "crs": CRS.from_epsg(32633)},
    "nowhere": {"transform": Affine(10, 0, 5e5, 0, -10, 5e6)},
}


class Boxes:
    """One box in each patch."""

    digest = "boxes"
    output = OutputSpec(name="things", kind="boxes", channels=("a", "b"), most=1)
    spec = ModelSpec(name="boxes", channels=3, size=128, any_size=True, outputs=(output,))

    def __call__(self, pixels):
        return {"things": torch.tensor([[[5.0, 5, 9, 9, 0.5, 1]]]).expand(len(pixels), 1, 6)}

    def to(self, device):
        return self


def model_of(name, source):
    if name == "boxes":
        return Boxes()
    if name == "drive":
        torch.manual_seed(0)
        return patchdrivenet(PatchDriveNetConfig(threshold=0.02))
    return load_model(name, traits_of(source))


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    """Metadata of a store, by place and model."""
    held = {}
    for place, model in [
        *((place, "identity") for place in PLACES),
        ("slide", "descriptor"),
        ("scene", "quality"),
        ("slide", "drive"),
        ("slide", "boxes"),
    ]:
        source, store = image(**PLACES[place]), tmp_path_factory.mktemp("store") / "s.zarr"
        drives = {"max_patches": 5} if model == "drive" else {"saliency": "valid"}
        run(source, model_of(model, source), store, settings=RunSettings(**drives))
        held[place, model] = metadata(store)
    return held


def test_the_schema_is_one():
    Draft202012Validator.check_schema(SCHEMA)


def test_it_describes_every_store(documents):
    for store, found in documents.items():
        assert [error.message[:300] for error in Draft202012Validator(SCHEMA).iter_errors(found)] == [], store


WRONG = {
    "another layout": ("zarr.json", lambda held: held["attributes"]["patchdrive"].update(schema=2)),
    "a host": ("zarr.json", lambda held: held["attributes"]["patchdrive"].update(host="x")),
    "a level without its place": (
        "images/image/zarr.json",
        lambda held: held["attributes"]["ome"]["multiscales"][0]["datasets"][0].clear(),
    ),
    "a probability without nodata": ("images/saliency/0/map/zarr.json", lambda held: held["attributes"].pop("_FillValue")),
    "half a georeference": ("images/image/0/map/zarr.json", lambda held: held["attributes"].pop("grid_mapping")),
}


@pytest.mark.parametrize("name", WRONG)
def test_it_refuses(documents, name):
    path, damage = WRONG[name]
    held = copy.deepcopy(documents["scene", "identity"])
    damage(held[path])
    assert list(Draft202012Validator(SCHEMA).iter_errors(held))


def test_it_knows_every_folder(documents):
    assert list(Draft202012Validator(SCHEMA).iter_errors({**documents["slide", "identity"], "images/image/0/other/zarr.json": {}}))


def test_the_root_says_with_what_it_was_made(documents):
    held = documents["slide", "drive"]["zarr.json"]["attributes"]["provenance"]
    assert held["reader"] == "memory"
    assert len(held["plans"]) == 1
    assert held["versions"]["torch"] == torch.__version__
