"""CIFAR-10: where it comes from, that damage is found, and the networks that are trained on it."""

import hashlib
import io
import os
import pickle
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.optim.swa_utils import update_bn

import dss
from dss import cifar
from dss.networks.architectures import densenet, resnet
from dss.status import Status


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """Neither a folder nor the official site."""
    monkeypatch.delenv("DSS_CIFAR_DIR", raising=False)

    def unreachable(*arguments, **keywords):
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    return tmp_path / "data"


@pytest.fixture
def official(monkeypatch):
    """Two files like the official ones, of random pixels, known by their md5."""
    rng = np.random.default_rng(0)
    contents = {}
    for name, n in (("data_batch_1", 6), ("test_batch", 4)):
        pixels = rng.integers(0, 256, (n, 3072), dtype=np.uint8)
        labels = rng.integers(0, 10, n).tolist()
        contents[name] = pickle.dumps({"data": pixels, "labels": labels})
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in contents.items()}
    for split, name in (("train", "data_batch_1"), ("test", "test_batch")):
        monkeypatch.setattr(f"torchvision.datasets.CIFAR10.{split}_list", [[name, md5[name]]])
    return contents


@pytest.fixture
def copies(monkeypatch, tmp_path):
    """A folder with JPEG copies of ten images, whose sha256 is the known one."""
    folder, arrays = tmp_path / "copies", {}
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    for split, n in (("train", 6), ("test", 4)):
        colour = torch.randint(0, 256, (n, 3, 1, 1), generator=generator).expand(-1, -1, 32, 32)
        streams = [jpeg_of(image.permute(1, 2, 0)) for image in colour.to(torch.uint8)]
        arrays[f"{split}_jpeg"] = np.frombuffer(b"".join(streams), dtype=np.uint8)
        arrays[f"{split}_size"] = np.array([len(stream) for stream in streams], dtype=np.int32)
        arrays[f"{split}_label"] = np.arange(n, dtype=np.uint8)
        arrays[split] = colour[:, :, 0, 0].numpy()
    colours = arrays.pop("train"), arrays.pop("test")
    np.savez(folder / cifar.COPIES, **arrays)
    sha256 = hashlib.sha256((folder / cifar.COPIES).read_bytes()).hexdigest()
    monkeypatch.setattr(cifar, "COPIES_SHA256", sha256)
    return folder, colours


def jpeg_of(image):
    buffer = io.BytesIO()
    Image.fromarray(image.contiguous().numpy()).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def archive_of(contents):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as files:
        for name, content in contents.items():
            entry = tarfile.TarInfo(f"{cifar.BATCHES}/{name}")
            entry.size = len(content)
            files.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def test_official_files_are_read(alone, official):
    (alone / cifar.BATCHES).mkdir(parents=True)
    for name, content in official.items():
        (alone / cifar.BATCHES / name).write_bytes(content)
    (train, test), source = cifar.load_cifar10(5, 4, alone)
    assert source.kind == "official" and len(source.sha256) == 64
    pixels = pickle.loads(official["data_batch_1"])["data"].reshape(-1, 3, 32, 32)[:5]
    back = train[0] * torch.tensor(cifar.DEVIATION).view(3, 1, 1)
    back = (back + torch.tensor(cifar.MEAN).view(3, 1, 1)) * 255
    torch.testing.assert_close(back, torch.from_numpy(pixels).float(), atol=1e-3, rtol=0)
    assert train[1].tolist() == pickle.loads(official["data_batch_1"])["labels"][:5]
    assert test[0].shape == (4, 3, 32, 32) and test[1].dtype == torch.int64


def test_a_damaged_file_never_gets_in(alone, official, monkeypatch):
    (alone / cifar.BATCHES).mkdir(parents=True)
    for name, content in official.items():
        (alone / cifar.BATCHES / name).write_bytes(content[:-1] + b"!")
    with pytest.raises(RuntimeError, match="not the published file") as error:
        cifar.ensure_cifar10(alone)
    assert "DSS_CIFAR_DIR" in str(error.value) and "no network" in str(error.value)
    folder = alone.parent / "given"
    folder.mkdir()
    (folder / cifar.ARCHIVE).write_bytes(archive_of(official))
    monkeypatch.setenv("DSS_CIFAR_DIR", str(folder))
    assert cifar.ensure_cifar10(alone).kind == "official", "repaired from the archive"
    monkeypatch.delenv("DSS_CIFAR_DIR")
    assert cifar.ensure_cifar10(alone).path == alone / cifar.BATCHES


def test_an_archive_with_other_files_is_refused(alone, official, monkeypatch, tmp_path):
    other = {name: content + b"!" for name, content in official.items()}
    (tmp_path / cifar.ARCHIVE).write_bytes(archive_of(other))
    monkeypatch.setenv("DSS_CIFAR_DIR", str(tmp_path))
    with pytest.raises(RuntimeError, match="is not the published file"):
        cifar.ensure_cifar10(alone)
    assert not list(alone.glob(f"{cifar.BATCHES}/*"))


def test_copies_serve_and_say_so(alone, official, copies, monkeypatch):
    folder, (train_colours, _) = copies
    monkeypatch.setenv("DSS_CIFAR_DIR", str(folder))
    (train, test), source = cifar.load_cifar10(6, 4, alone)
    assert source.kind == "jpeg" and source.sha256 == cifar.COPIES_SHA256
    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in (cifar.MEAN, cifar.DEVIATION))
    pixels = (train[0] * deviation + mean) * 255
    colours = torch.from_numpy(train_colours)[train[1]]  # labels number the images
    assert (pixels.mean(dim=(2, 3)) - colours).abs().max() < 4
    assert sorted(train[1].tolist()) == list(range(6)) and train[1].tolist() != list(range(6))
    task = dss.cifar10("cnn", n_train=6, n_eval=4)
    assert task.name == "cifar10 cnn cross_entropy (jpeg)"
    path = folder / cifar.COPIES
    path.write_bytes(path.read_bytes() + b"!")
    with pytest.raises(RuntimeError, match="not the file with sha256"):
        cifar.ensure_cifar10(alone)


@pytest.mark.parametrize("n_blocks, n_params", [(1, 75_290), (3, 269_722)])
def test_residual_networks_are_the_published_ones(n_blocks, n_params):
    module = resnet(n_blocks)
    convolutions = [m for m in module.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) + 1 == 6 * n_blocks + 2
    assert sum(p.numel() for p in module.parameters()) == n_params
    assert module(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_a_dense_network_is_the_published_one():
    module = densenet(3, 12)
    convolutions = [m for m in module.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) + 1 == 22, "depth"
    assert [m.in_channels for m in convolutions if m.kernel_size == (1, 1)] == [
        24, 36, 48, 60, 30, 42, 54, 66, 33, 45, 57,
    ]  # fmt: skip
    assert module(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_the_authors_network(alone, official, copies, monkeypatch, seeded):
    monkeypatch.setenv("DSS_CIFAR_DIR", str(copies[0]))
    task, plain = (dss.cifar10(preset="authors", n_train=6, n_eval=4, l2=l2) for l2 in (0.004, 0))
    assert task.splits["test"][0].shape == (4, 3, 24, 24) and task.n_params == 1_068_298
    assert task.name == "cifar10 authors error (authors) (l2 0.004) (jpeg)"
    theta = task.init(1, seeded())
    by_name = dss.theta.unflatten(theta[0], dss.theta.shapes_of(task.module))
    for name, deviation in (("0.weight", 0.05), ("7.weight", 0.04), ("11.weight", 1 / 192)):
        values = by_name[name]
        assert values.abs().max() <= 2 * deviation * 1.001
        assert float(values.std()) == pytest.approx(0.88 * deviation, rel=0.05), name
    assert set(by_name["0.bias"].tolist()) == {0.0} and by_name["3.bias"].min() > 0.0999
    hidden = [by_name[name] for name in ("7.weight", "9.weight")]
    penalty = 0.002 * sum(float(w.double().square().sum()) for w in hidden)
    losses, gradients = zip(task.gradients(theta), plain.gradients(theta), strict=True)
    assert float(losses[0] - losses[1]) == pytest.approx(penalty, rel=1e-3)
    pull = dss.theta.unflatten((gradients[0] - gradients[1])[0], dss.theta.shapes_of(task.module))
    torch.testing.assert_close(pull["7.weight"], 0.004 * hidden[0], atol=1e-6, rtol=1e-3)
    assert float(pull["11.weight"].abs().max()) < 1e-6
    assert task.to("cpu").l2 is not None and float(task.losses(theta)) == float(plain.losses(theta))
    with pytest.raises(ValueError, match="l2 is 0.1; only the network of preset='authors'"):
        dss.cifar10("cnn", l2=0.1)


@pytest.mark.parametrize("network", ["cnn", "resnet8", "densenet"])
def test_a_string_between_networks(alone, official, copies, monkeypatch, network, seeded):
    monkeypatch.setenv("DSS_CIFAR_DIR", str(copies[0]))
    task = dss.cifar10(network, n_train=6, n_eval=4)
    L0 = 2.6  # above ln 10
    training = {"lr": 1e-3, "optimizer": "adam", "max_steps": 10, "check_every": 5}
    ends = dss.train_endpoints(task, 2, [L0], seeded(), fewer=True, **training).thetas[0]
    string = dss.find_string(task, *ends, L0, method="averaged", max_steps=10, generator=seeded())
    assert string.status in Status
    losses = [float(v) for v in task.losses(ends)]
    for theta, loss in zip(ends, losses, strict=True):  # the plain module gives the same
        module = dss.tasks.COLOUR_NETWORKS[network]()
        nn.utils.vector_to_parameters(theta, module.parameters())
        update_bn([task.splits["train"][0]], module)  # of so few images all
        module.eval()
        x, y = task.splits["test"]
        with torch.no_grad():
            plain = float(nn.functional.cross_entropy(module(x), y))
        assert plain == pytest.approx(loss, rel=1e-4)


def test_images_from_which_batchnorm_takes_its_statistics(copies, monkeypatch):
    monkeypatch.setenv("DSS_CIFAR_DIR", str(copies[0]))
    task = dss.cifar10("resnet8", n_train=6, n_eval=4, n_reference=3)
    assert torch.equal(task.reference, task.splits["train"][0][:3])
    assert dss.cifar10("cnn", n_train=6, n_eval=4).reference is None
    for arguments, message in (
        ({"network": "cnn", "n_reference": 3}, "n_reference is 3, but cnn has no BatchNorm"),
        ({"network": "resnet8", "n_reference": 7}, "n_reference is 7"),
        ({"network": "resnet8", "n_reference": 1}, "n_reference is 1"),
    ):
        with pytest.raises(ValueError, match=message):
            dss.cifar10(n_train=6, n_eval=4, **arguments)


@pytest.mark.skipif(not os.environ.get("DSS_CIFAR_DIR"), reason="no folder with CIFAR-10")
def test_the_real_images():
    (train, test), source = cifar.load_cifar10(500, 100)
    assert source.kind in ("official", "jpeg")
    assert train[0].shape == (500, 3, 32, 32) and set(train[1].tolist()) == set(range(10))
    assert torch.bincount(train[1], minlength=10).min() > 25, "the first are of all classes"
    assert train[0].mean().abs() < 0.1 and abs(float(train[0].std()) - 1) < 0.1
