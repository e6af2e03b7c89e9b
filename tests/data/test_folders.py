"""Image folders, general Parquet files, and the bundled images."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from make_layouts import parquet_file, png
from PIL import Image

from whycam.data import open_source, take
from whycam.data.batches import resize_center_crop_uint8
from whycam.data.bundled import choose_indices
from whycam.data.preprocess import resize_center_crop
from whycam.errors import WhycamError

ROOT = Path(__file__).parent.parent.parent
SHARED = ROOT.parent / "shared"


def picture(shade: int, height: int = 8, width: int = 8) -> np.ndarray:
    pixels = np.full((height, width, 3), shade, np.uint8)
    pixels[0] = (shade + np.arange(width * 3).reshape(width, 3)) % 256
    return pixels


def put(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def pets(tmp_path):
    root = tmp_path / "pets"
    for number, name in enumerate(["dog/b.png", "dog/a.PNG", "cat/felix.png", "cat/deep/er/tom.bmp"]):
        put(root / name, picture(number * 40))
    put(root / ".thumbnails" / "x.png", picture(0))
    put(root / "cat" / "._felix.png", picture(0))
    (root / "dog" / "notes.txt").write_text("no image")
    (root / "empty").mkdir()
    return root


def test_one_folder_per_class(pets):
    source = open_source(pets)
    assert source.classes == ("cat", "dog")
    assert source.ids == ("cat/deep/er/tom.bmp", "cat/felix.png", "dog/a.PNG", "dog/b.png")
    assert source.labels.tolist() == [0, 0, 1, 1]
    assert (source.name, source.split, len(source)) == ("pets", "all", 4)
    batch = source.read([3, 0])
    assert batch.shape == (2, 3, 8, 8)
    assert np.array_equal(batch[0].permute(1, 2, 0), picture(0))
    assert np.array_equal(batch[1].permute(1, 2, 0), picture(120))
    assert source.read([]).shape == (0, 3, 8, 8)


def test_the_digest_tells_folders_apart(pets):
    before = open_source(pets).digest
    assert before == open_source(pets).digest
    (pets / "dog" / "a.PNG").rename(pets / "dog" / "c.PNG")
    assert open_source(pets).digest != before


def test_labels_follow_a_models_classes(pets):
    source = open_source(pets, classes=("bird", "Dog", "cat"))
    assert source.classes == ("bird", "Dog", "cat")
    assert source.labels.tolist() == [2, 2, 1, 1]
    with pytest.raises(WhycamError, match=r"'dog' is not one of the model's 2 classes \(did you mean dogs\?\)"):
        open_source(pets, classes=("cat", "dogs"))
    put(pets / "CAT" / "x.png", picture(1))
    with pytest.raises(WhycamError, match=r"'CAT' and 'cat' both mean the model's class 'Cat'"):
        open_source(pets, classes=("Cat", "dog"))


def test_splits_inside(tmp_path):
    put(tmp_path / "train" / "cat" / "1.png", picture(1))
    put(tmp_path / "train" / "axolotl" / "1.png", picture(2))
    put(tmp_path / "validation" / "cat" / "1.png", picture(3))
    train, held_out = open_source(tmp_path, "train"), open_source(tmp_path)
    assert train.ids == ("train/axolotl/1.png", "train/cat/1.png")
    assert (held_out.split, held_out.ids) == ("val", ("validation/cat/1.png",))
    assert train.classes == held_out.classes == ("axolotl", "cat")
    assert held_out.labels.tolist() == [1]
    put(tmp_path / "test" / "cat" / "1.png", picture(4))
    assert open_source(tmp_path).split == "test"
    assert open_source(tmp_path / "train", "train").split == "train"
    with pytest.raises(WhycamError, match=r"no split 'dev'; there is test and train and val"):
        open_source(tmp_path, "dev")


def test_a_class_may_be_called_train(tmp_path):
    put(tmp_path / "train" / "1.png", picture(1))
    put(tmp_path / "bus" / "1.png", picture(1))
    assert open_source(tmp_path).classes == ("bus", "train")


def test_a_flat_folder_has_no_training_split(pets):
    with pytest.raises(WhycamError, match=r"pets has no split 'train': its images are not divided"):
        open_source(pets, "train")
    loose = pets / "cat" / "deep" / "er"
    with pytest.raises(WhycamError, match="holds images, but not in one folder per class"):
        open_source(loose)
    with pytest.raises(WhycamError, match="is one image; give a folder with one folder per class"):
        open_source(pets / "dog" / "b.png")


def test_images_of_different_sizes(pets):
    put(pets / "dog" / "wide.png", picture(7, 20, 33))
    source = open_source(pets)
    with pytest.raises(WhycamError, match=r"wide\.png is 33×20 pixels, .*tom\.bmp is 8×8: give the size"):
        source.read(range(5))
    assert open_source(pets, size=(10, 12)).read(range(5)).shape == (5, 3, 10, 12)


@pytest.mark.parametrize(("height", "width"), [(20, 33), (9, 200), (5, 5), (12, 10)])
def test_resizing_equals_preprocess(height, width):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    whole = resize_center_crop(torch.from_numpy(pixels).permute(2, 0, 1)[None].double(), (12, 10))[0]
    resized = resize_center_crop_uint8(pixels, (12, 10))
    assert resized.dtype == torch.uint8
    assert (resized.double() - whole).abs().max() <= 0.5 + 1e-4


def test_a_damaged_image_is_named_on_reading(pets):
    (pets / "dog" / "b.png").write_bytes(b"no image at all")
    source = open_source(pets, size=(8, 8))
    assert source.read([0, 1, 2]).shape == (3, 3, 8, 8)
    with pytest.raises(WhycamError, match=r"dog/b\.png is not an image whycam reads"):
        source.read([3])


def test_a_file_name_that_is_not_utf8(pets):
    Path(f"{pets}/dog/\udcff.png").write_bytes(png(picture(1)))
    with pytest.raises(WhycamError, match="not valid UTF-8"):
        open_source(pets)


def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    put(tmp_path / "few" / "a" / "0000.png", picture(3, 256, 256))
    (tmp_path / "many" / "a").mkdir(parents=True)
    for number in range(400):
        (tmp_path / "many" / "a" / f"{number:04d}.png").hardlink_to(tmp_path / "few" / "a" / "0000.png")

    def peak(count: int) -> int:
        source = take(open_source(tmp_path / "many"), count)
        tracemalloc.start()
        for start in range(0, count, 8):
            source.read(range(start, start + 8))
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    peak(16)  # imports
    assert peak(400) < peak(40) + 2**20  # kept, 360 more images would be 70 MB


def rows(count: int, size: int = 12) -> tuple[list[np.ndarray], list[bytes]]:
    images = [picture(number * 9 % 256, size, size) for number in range(count)]
    return images, [png(image) for image in images]


def test_parquet_of_any_images_is_read_lazily(tmp_path):
    images, data = rows(11)
    labels = [number % 2 for number in range(11)]
    file = parquet_file(tmp_path / "data" / "validation.parquet", data, labels, column="image", names=["no", "yes"])
    source = open_source(tmp_path)
    assert (source.split, source.classes, source.ids[10]) == ("val", ("no", "yes"), "val/00010")
    batch = source.read([10, 0, 4, 3])
    for position, index in enumerate([10, 0, 4, 3]):
        assert np.array_equal(batch[position].permute(1, 2, 0), images[index])
    assert open_source(file, "val", classes=("maybe", "yes", "no"), size=(4, 6)).read([0]).shape == (1, 3, 4, 6)
    assert open_source(file, "val", classes=("maybe", "yes", "no")).labels.tolist()[:2] == [2, 1]
    with pytest.raises(WhycamError, match="there is val"):
        open_source(tmp_path, "train")


def test_parquet_splits_by_folder_and_text_labels(tmp_path):
    _, data = rows(4)
    parquet_file(tmp_path / "default" / "train" / "0000.parquet", data, ["b", "a", "b", "c"], column="image")
    source = open_source(tmp_path, "train")
    assert (source.classes, source.labels.tolist()) == (("a", "b", "c"), [1, 0, 1, 2])


def test_parquet_that_is_incomplete_damaged_or_foreign(tmp_path):
    _, data = rows(4)
    first = parquet_file(tmp_path / "test-00000-of-00003.parquet", data, [0, 1, 0, 1])
    with pytest.raises(WhycamError, match=r"lacks 2 of the 3 Parquet files of this split \(number 00001"):
        open_source(tmp_path)
    assert open_source(first).classes == ("0", "1")
    broken = tmp_path / "x" / "test.parquet"
    broken.parent.mkdir()
    broken.write_bytes(first.read_bytes()[:-100])
    with pytest.raises(WhycamError, match="truncated or damaged, or no Parquet file"):
        open_source(broken)
    with pytest.raises(WhycamError, match=r"the columns picture, label; whycam needs img or image, and label"):
        open_source(parquet_file(tmp_path / "y" / "test.parquet", data, [0] * 4, column="picture"))
    with pytest.raises(WhycamError, match=r"has the label -1; labels must be 0 to 1"):
        open_source(parquet_file(tmp_path / "z" / "test.parquet", data, [0, 1, -1, 0], names=["a", "b"]))
    with pytest.raises(WhycamError, match="holds no images"):
        open_source(parquet_file(tmp_path / "w" / "test.parquet", [], [], names=["a", "b"]))


def test_bundled_images():
    source = open_source("bundled")
    index = json.loads((ROOT / "src/whycam/assets/cifar10-1000/index.json").read_text())
    assert source.name == "CIFAR-10 (bundled 1,000)"
    assert np.bincount(source.labels).tolist() == [100] * 10
    assert list(source.ids) == [f"test/{number:05d}" for number in sorted(index["indices"])]
    assert source.read(range(1000)).shape == (1000, 3, 32, 32)
    folder = ROOT / "src/whycam/assets/cifar10-1000"
    assert sum(file.stat().st_size for file in folder.iterdir()) < 2_000_000


def test_bundled_is_a_keyword_not_a_path(pets, monkeypatch):
    pets.rename(pets.parent / "bundled")
    monkeypatch.chdir(pets.parent)
    assert open_source("bundled").name == "CIFAR-10 (bundled 1,000)"
    assert open_source("./bundled").classes == ("cat", "dog")


@pytest.fixture(scope="session")
def official(tmp_path_factory):
    """The real CIFAR-10, where the material to make it lies beside the repository."""
    tool = SHARED / "tools" / "cifar10.py"
    if not tool.exists():
        pytest.skip("the official images lie outside the repository and are not here")
    out = tmp_path_factory.mktemp("official")
    subprocess.run([sys.executable, tool, out], check=True, capture_output=True)
    return out


@pytest.mark.slow
def test_bundled_images_are_the_official_ones(official):
    whole, part = open_source(official), open_source("bundled")
    index = json.loads((ROOT / "src/whycam/assets/cifar10-1000/index.json").read_text())
    indices = choose_indices(whole.labels, index["seed"])
    assert part.ids == tuple(f"test/{number:05d}" for number in indices)
    assert np.array_equal(part.labels, whole.labels[indices])
    assert part.read(range(1000)).equal(whole.read(indices))


@pytest.mark.slow
def test_official_contents_are_recognized_in_any_order_of_batches(official, tmp_path):
    source = open_source(official, "train")
    assert source.name == "CIFAR-10"
    order = np.concatenate([np.arange(10_000) + 10_000 * batch for batch in (3, 0, 4, 1, 2)])
    data = [png(image) for image in source.images[order].transpose(0, 2, 3, 1)]
    parquet_file(tmp_path / "plain_text" / "train-00000-of-00001.parquet", data, source.labels[order].tolist())
    copy = open_source(tmp_path, "train")
    assert copy.name == "CIFAR-10"
    assert copy.digest == source.digest
