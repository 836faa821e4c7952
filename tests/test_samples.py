"""Samples that people bring: several inputs, trees, datasets, loaders, augmentation."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)

import dss
from dss.networks import samples
from dss.networks.samples import Streamed

X = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
Z = torch.randn(60, 3, generator=torch.Generator().manual_seed(1))
Y = (X.sum(dim=1) > 0).long()


class TwoInputs(nn.Module):
    """Takes its second input as an argument or by name, and returns what `answer` makes."""

    def __init__(self, answer=lambda o: o):
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(3, 8)
        self.last, self.answer = nn.Linear(8, 2), answer

    def forward(self, x, z, scale=None):
        h = torch.tanh(self.first(x) + self.second(z))
        return self.answer(self.last(h if scale is None else h * scale))


class Pairs(Dataset):
    """Samples one by one; with `noisy` each is changed by all three global generators."""

    def __init__(self, n=60, noisy=False):
        self.n, self.noisy, self.n_read = n, noisy, 0

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        self.n_read += 1
        x = X[i]
        if self.noisy:
            x = x + 0.2 * (torch.randn(4) + float(np.random.randn()) + random.random())
        return x, Y[i]


def mlp():
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))


def seeded_module(make):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


TREES = {
    "tuple": (X, Z),
    "dict": {"z": Z, "x": X},
    "three": {"x": X, "z": Z, "scale": X[:, :1]},
}


@pytest.mark.parametrize("kind", TREES)
@pytest.mark.parametrize("eval_chunk", [None, 7])
def test_several_inputs_give_the_losses_of_the_plain_module(kind, eval_chunk):
    x, net = TREES[kind], seeded_module(TwoInputs)
    task = dss.Task.from_module(net, "cross_entropy", (x, Y), (x, Y), eval_chunk=eval_chunk)
    plain = net(**x) if isinstance(x, dict) else net(*x)
    thetas = task.theta(net) * torch.tensor([[1.0], [0.5]])
    losses = task.losses(thetas)
    assert losses[0].item() == pytest.approx(F.cross_entropy(plain, Y).item(), rel=1e-5)
    assert torch.allclose(task.losses(thetas[1:]), losses[1:], rtol=1e-5)
    net.zero_grad()
    F.cross_entropy(plain, Y).backward()
    expected = torch.cat([p.grad.reshape(-1) for p in net.parameters()])
    assert torch.allclose(task.gradients(thetas)[1][0], expected, atol=1e-6)
    assert torch.allclose(task.outputs(thetas, x)[0], plain, atol=1e-6)
    assert task.to(dtype=torch.float64).losses(thetas.double()).dtype == torch.float64


def test_a_search_with_several_inputs_goes_on_at_a_checkpoint(tmp_path):
    task = dss.Task.from_module(TwoInputs(), "cross_entropy", ((X, Z), Y), ((X, Z), Y))
    ends = dss.train_to(task, task.init(2), 0.2, lr=0.05).thetas
    path = tmp_path / "search.checkpoint"
    first = dss.find_string(task, *ends, L0=0.2, checkpoint=path)
    again = dss.find_string(task, *ends, L0=0.2, checkpoint=path)
    assert first.connected and torch.equal(first.thetas, again.thetas)
    other = dss.Task.from_module(TwoInputs(), "cross_entropy", ((X, Z + 1), Y), ((X, Z), Y))
    with pytest.raises(ValueError, match=r"train x\[1\]"):
        dss.find_string(other, *ends, L0=0.2, checkpoint=path)


def test_outputs_and_targets_may_be_trees_for_a_loss_of_ones_own():
    def loss(output, y):
        return (
            F.cross_entropy(output["class"], y["class"]) + output["square"].mean() * y["w"].mean()
        )

    net = TwoInputs(lambda o: {"class": o, "square": o.square()})
    y = {"class": Y, "w": X[:, 0].abs()}
    task = dss.Task.from_module(net, loss, ((X, Z), y), ((X, Z), y))
    thetas = task.init(2)
    assert torch.allclose(task.losses(thetas)[:1], task.losses(thetas[:1]))
    outputs = task.outputs(thetas, (X[:5], Z[:5]))
    assert outputs["square"].shape == (2, 5, 2)
    assert task.gradients(thetas)[1].isfinite().all()


def test_an_output_that_holds_no_tensor_is_refused_with_the_way_out():
    net = TwoInputs(lambda o: {"logits": o, "cache": SimpleNamespace()})
    take = {"output": lambda o: o["logits"]}
    sample = (X, Z), Y
    with pytest.raises(TypeError, match="returns a dict, .*; pass output="):
        dss.Task.from_module(net, lambda o, y: F.cross_entropy(o["logits"], y), sample, sample)
    assert dss.Task.from_module(net, "cross_entropy", sample, sample, **take).n_params


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (((X, Z[:9]), Y), r"60 inputs and 60 targets.*'x\[1\]': 9"),
        (({"x": X, "z": Z.clone().fill_(torch.nan)}, Y), r"train x\['z'\] .*NaN"),
        ((X,), "a pair"),
        ({"x": X, "y": Y}, "train is a dict of 'x', 'y' without 'labels', the targets; a pair"),
        (((X, 3), Y), "a pair"),
    ],
)
def test_bad_trees_are_named(sample, message):
    with pytest.raises((ValueError, TypeError), match=message):
        dss.Task.from_module(TwoInputs(), "cross_entropy", sample, ((X, Z), Y))


def loaders():
    return {
        "tensors": (X, Y),
        "TensorDataset": TensorDataset(X, Y),
        "dataset": Pairs(),
        "subset": Subset(TensorDataset(X, Y), range(60)),
        "loader": DataLoader(Pairs(), batch_size=10, shuffle=True),
    }


@pytest.mark.parametrize("kind", loaders())
def test_a_dataset_trains_as_its_tensors_do(kind):
    tasks = [
        dss.Task.from_module(mlp(), "cross_entropy", given, given, batch_size=10)
        for given in (loaders()["tensors"], loaders()[kind])
    ]
    thetas = tasks[0].init(2)
    ends = [dss.train_to(t, thetas, 0.4, lr=0.05, max_steps=200).thetas for t in tasks]
    assert torch.equal(tasks[0].losses(thetas), tasks[1].losses(thetas))
    if kind == "TensorDataset":  # held, and no seed is drawn for its reading
        assert torch.equal(*ends)
    assert (tasks[1].losses(ends[1]) <= 0.4 * (1 + 1e-5)).all()


def test_what_a_dataset_draws_follows_from_the_seed_and_from_nothing_else():
    task = dss.Task.from_module(mlp(), "cross_entropy", Pairs(noisy=True), (X, Y), batch_size=8)
    thetas, found = task.init(2), []
    for seed in (0, 0, 1):
        torch.manual_seed(len(found))
        before = torch.get_rng_state(), random.getstate()
        generator = torch.Generator().manual_seed(seed)
        options = {"max_steps": 5, "check_every": 5, "generator": generator}
        found.append(dss.train_to(task, thetas, 1e-9, **options).thetas)
        assert torch.equal(before[0], torch.get_rng_state()) and before[1] == random.getstate()
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_an_evaluation_set_is_read_once_and_fixed_where_it_fits(monkeypatch):
    test = Pairs(noisy=True)
    task = dss.Task.from_module(mlp(), "cross_entropy", (X, Y), test)
    thetas, n_read = task.init(3), test.n_read
    assert torch.equal(task.losses(thetas), task.losses(thetas)) and test.n_read == n_read
    monkeypatch.setattr(samples, "free_memory", lambda device: 0)
    streamed = dss.Task.from_module(mlp(), "cross_entropy", (X, Y), test, eval_chunk=16)
    assert isinstance(streamed.splits["test"], Streamed)
    assert torch.equal(streamed.losses(thetas), streamed.losses(thetas)) and test.n_read > n_read
    plain = dss.Task.from_module(mlp(), "cross_entropy", (X, Y), Pairs(), eval_chunk=16)
    held = dss.Task.from_module(mlp(), "cross_entropy", (X, Y), (X, Y), eval_chunk=16)
    assert isinstance(plain.splits["test"], Streamed)
    assert torch.equal(plain.losses(thetas), held.losses(thetas))
    with pytest.raises(ValueError, match="no pair of tensors that are held"):
        dss.certify_strings(plain, [])


def test_a_streamed_search_goes_on_bit_for_bit(tmp_path):
    task = dss.Task.from_module(mlp(), "cross_entropy", Pairs(noisy=True), (X, Y), batch_size=8)
    ends = dss.train_to(task, task.init(2), 0.5, lr=0.02).thetas
    options = {"L0": 0.5, "method": "averaged", "max_steps": 500}
    strings = [dss.find_string(task, *ends, **options) for _ in range(2)]
    strings.append(dss.find_string(task, *ends, checkpoint=tmp_path / "s", **options))
    strings.append(dss.find_string(task, *ends, checkpoint=tmp_path / "s", **options))
    assert all(torch.equal(s.thetas, strings[0].thetas) for s in strings)
    other = dss.Task.from_module(mlp(), "cross_entropy", Pairs(50), (X, Y), batch_size=8)
    with pytest.raises(ValueError, match="train samples is .60 of Pairs. there"):
        dss.find_string(other, *ends, checkpoint=tmp_path / "s", **options)


def test_augment_changes_training_batches_and_nothing_else():
    seen = []

    def augment(x):
        seen.append(x)
        return x * torch.rand(len(x), 1)

    plain = dss.Task.from_module(mlp(), "cross_entropy", (X, Y), (X, Y), batch_size=8)
    task = dss.Task.from_module(
        mlp(), "cross_entropy", (X, Y), (X, Y), batch_size=8, augment=augment
    )
    thetas = task.init(2)
    assert [len(x) for x in seen] == [2], "it is tried"
    seen.clear()
    assert torch.equal(task.losses(thetas), plain.losses(thetas)) and not seen
    assert torch.equal(task.losses(thetas, "train"), plain.losses(thetas, "train")) and not seen
    found = [
        task.gradients(thetas, torch.arange(8), torch.Generator().manual_seed(s))[1]
        for s in (0, 0, 1)
    ]
    assert len(seen) == 3 and torch.equal(seen[0], X[:8])
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


class Labelled(Dataset):
    """Samples as dicts, as Hugging Face gives them."""

    def __len__(self):
        return 60

    def __getitem__(self, i):
        return {"x": X[i], "z": Z[i], "labels": Y[i]}


def test_dicts_with_labels_are_samples():
    tree = {"x": X, "z": Z}
    tasks = [
        dss.Task.from_module(TwoInputs(), "cross_entropy", given, given, batch_size=10)
        for given in (Labelled(), (tree, Y))
    ]
    thetas = tasks[0].init(2)
    assert torch.equal(tasks[0].losses(thetas), tasks[1].losses(thetas))
    batch = torch.arange(10)
    gradients = [t.gradients(thetas, batch)[1] for t in tasks]
    assert torch.equal(*gradients)


class Endless(IterableDataset):
    def __iter__(self):
        yield X[0], Y[0]


def weighted():
    return DataLoader(Pairs(), sampler=WeightedRandomSampler([1.0] * 60, 60))


@pytest.mark.parametrize(
    ("train", "options", "message"),
    [
        (Endless(), {}, "IterableDataset, of which samples cannot be drawn"),
        (weighted(), {}, "WeightedRandomSampler, but batches are drawn here"),
        (Pairs(), {}, "batch_size is None; training on a dataset needs one"),
        (Pairs(0), {"batch_size": 4}, "a Pairs without a sample"),
        (Subset(X, range(60)), {"batch_size": 4}, "a batch of the dataset is Tensor; a pair"),
        ((X, Y), {"augment": 3}, "augment is 3; a function of the inputs of a batch is needed"),
    ],
)
def test_bad_datasets_are_named(train, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        dss.Task.from_module(mlp(), "cross_entropy", train, (X, Y), **options)


def test_a_loader_names_the_size_of_batches():
    task = dss.Task.from_module(
        mlp(), "cross_entropy", DataLoader(Pairs(), batch_size=12), DataLoader(Pairs())
    )
    assert task.batch_size == 12 and task.eval_chunk is None


def tenth(batch):
    x, y = default_collate(batch)
    return x / 10, y


def test_what_a_loader_does_to_its_batches_is_done():
    net = mlp()
    loader = DataLoader(TensorDataset(X, Y), 10, collate_fn=tenth)
    task = dss.Task.from_module(net, "cross_entropy", loader, loader)
    assert float(task.losses(dss.flatten(net)[None])) == pytest.approx(
        float(F.cross_entropy(net(X / 10), Y)), rel=1e-6
    )


LEFT_OUT = {
    "batch sampler": {"batch_sampler": BatchSampler(SubsetRandomSampler(range(8)), 4, False)},
    "fewer": {"sampler": RandomSampler(range(60), num_samples=9), "batch_size": 3},
    "again": {"sampler": RandomSampler(range(60), replacement=True), "batch_size": 3},
    "no batches": {"batch_size": None},
}


@pytest.mark.parametrize("kind", LEFT_OUT)
def test_a_loader_that_leaves_samples_out_is_refused(kind):
    loader = DataLoader(TensorDataset(X, Y), **LEFT_OUT[kind])
    for split in ((loader, (X, Y)), ((X, Y), loader)):
        with pytest.raises(ValueError, match="is a DataLoader with"):
            dss.Task.from_module(mlp(), "cross_entropy", *split)
    usual = DataLoader(TensorDataset(X, Y), batch_sampler=BatchSampler(RandomSampler(X), 6, True))
    assert dss.Task.from_module(mlp(), "cross_entropy", usual, (X, Y)).batch_size == 6


def test_a_sample_belongs_to_the_task_alone():
    def turning(x):
        x[:] = x.flip(1)
        return x

    x, y = X.clone(), Y.clone()
    task = dss.Task.from_module(mlp(), "cross_entropy", (x, y), (x, y), augment=turning)
    thetas = task.init(2)
    before = task.losses(thetas), task.losses(thetas, "train")
    task.gradients(thetas)
    x.mul_(2)
    y.fill_(0)
    assert torch.equal(task.losses(thetas), before[0])
    assert torch.equal(task.losses(thetas, "train"), before[1])


class Writing(nn.Module):
    def __init__(self):
        super().__init__()
        self.last = nn.Linear(4, 2)

    def forward(self, x):
        x -= 1
        return self.last(x)


def writes_targets(output, y):
    y.mul_(2)
    return F.mse_loss(output, y)


def test_what_is_written_to_is_named():
    x = X.clone()
    first = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 2))
    for net in (Writing(), first):
        with pytest.raises(ValueError, match="forward writes to its inputs"):
            dss.Task.from_module(net, "cross_entropy", (x, Y), (x, Y))
    assert torch.equal(x, X)
    real = torch.randn(60, 2)
    with pytest.raises(ValueError, match="writes to its targets, the train y"):
        dss.Task.from_module(mlp(), writes_targets, (X, real), (X, real))


N = 2_000
MANY_X = torch.randn(N, 4, generator=torch.Generator().manual_seed(3))
RARE = torch.zeros(N, dtype=torch.int64).index_fill_(0, torch.arange(1301, 1304), 1)
IGNORED = (torch.arange(N) % 2).index_fill_(0, torch.arange(40, 60), -100)
WEIGHTED = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 300.0]))


def weighted_mean(output, y):
    return F.cross_entropy(output, y, weight=WEIGHTED.weight)


class Standardised(nn.Module):
    """It looks at the batch."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(4, 2)

    def forward(self, x):
        return self.last((x - x.mean(0)) / x.std(0))


NO_MEANS = {
    "weights": (WEIGHTED, RARE, mlp, 256),
    "weights of a function": (weighted_mean, RARE, mlp, 256),
    "ignored labels": (nn.CrossEntropyLoss(), IGNORED, mlp, 10),
    "a network that mixes samples": (nn.CrossEntropyLoss(), RARE, Standardised, 40),
}


@pytest.mark.parametrize("kind", NO_MEANS)
def test_parts_that_give_another_value_are_refused(kind):
    loss, y, make, chunk = NO_MEANS[kind]
    sample = MANY_X, y
    whole = dss.Task.from_module(make(), loss, sample, sample)
    assert whole.losses(whole.init(1)).isfinite().all()
    with pytest.raises(ValueError, match=f"eval_chunk is {chunk}, but the metric is no mean"):
        dss.Task.from_module(make(), loss, sample, sample, eval_chunk=chunk)


def test_a_training_dataset_is_not_measured_in_parts_that_matter():
    train = Subset(TensorDataset(MANY_X, RARE), range(N))
    power = lambda output, y: F.cross_entropy(output, y) ** 4  # noqa: E731
    task = dss.Task.from_module(mlp(), power, train, (MANY_X, RARE), batch_size=50)
    with pytest.raises(ValueError, match="is no mean"):
        task.losses(task.init(1), "train")
    task = dss.Task.from_module(mlp(), "cross_entropy", train, (MANY_X, RARE), batch_size=50)
    thetas = task.init(2)
    assert torch.allclose(task.losses(thetas, "train"), task.losses(thetas), rtol=1e-5)


def test_the_last_part_is_tried():
    class Squeezing(nn.Linear):
        def forward(self, x):
            return super().forward(x).squeeze()

    sample = X[:16], X[:16, 0]
    assert dss.Task.from_module(Squeezing(4, 1), "mse", sample, sample, eval_chunk=4).n_params
    with pytest.raises(ValueError, match="eval_chunk is 5, and the last part has 1 of the 16"):
        dss.Task.from_module(Squeezing(4, 1), "mse", sample, sample, eval_chunk=5)


class Lengths(Dataset):
    """Words of which the last samples are longer."""

    def __len__(self):
        return 300

    def __getitem__(self, i):
        return torch.full((3 + (i >= 256),), 1 + i % 6), i % 2


def padded(batch):
    words = nn.utils.rnn.pad_sequence([x for x, _ in batch], batch_first=True)
    return words, torch.tensor([y for _, y in batch])


def test_parts_that_are_padded_each_for_itself_are_held():
    net = nn.Sequential(nn.EmbeddingBag(7, 2, mode="sum", padding_idx=0))
    loader = DataLoader(Lengths(), 16, collate_fn=padded)
    task = dss.Task.from_module(net, "cross_entropy", loader, loader)
    words, y = padded([Lengths()[i] for i in range(300)])
    assert float(task.losses(dss.flatten(net)[None])) == pytest.approx(
        float(F.cross_entropy(net(words), y)), rel=1e-6
    )


@pytest.mark.parametrize(
    ("augment", "said"),
    [
        (lambda x: None, "augment gives None for 2 inputs"),
        (lambda x, y: x, "augment fails on 2 training inputs"),
        (lambda x: x[:1], "for 2 inputs; as many inputs are needed"),
    ],
)
def test_augment_is_tried(augment, said):
    with pytest.raises(ValueError, match=said):
        dss.Task.from_module(mlp(), "cross_entropy", (X, Y), (X, Y), augment=augment)


class Keeping(nn.Module):
    def __init__(self):
        super().__init__()
        self.last, self.kept = nn.Linear(4, 2), []

    def forward(self, x):
        self.kept.append(self.last(x))
        return self.kept[-1]


class TwoModes(nn.Module):
    def __init__(self):
        super().__init__()
        self.last = nn.Linear(4, 2)

    def forward(self, x):
        return self.last(x) if self.training else self.last(x).softmax(-1)


def test_networks_that_remember_or_have_two_modes_are_named():
    with pytest.raises(TypeError, match="'kept' of layer '' .Keeping. is"):
        dss.Task.from_module(Keeping(), "cross_entropy", (X, Y), (X, Y))
    with pytest.raises(ValueError, match="otherwise in train mode, in which it is, than in eval"):
        dss.Task.from_module(TwoModes(), "cross_entropy", (X, Y), (X, Y))
    assert dss.Task.from_module(TwoModes().eval(), "cross_entropy", (X, Y), (X, Y)).n_params


def test_labels_are_counted_in_all_samples():
    wrong = Y.clone().index_fill_(0, torch.arange(20), -100)
    with pytest.raises(ValueError, match="20 labels that are no class.*itself leaves -100 out"):
        dss.Task.from_module(mlp(), "cross_entropy", (X, wrong), (X, Y))


def test_a_list_of_samples_is_no_pair():
    samples = [(X[i], Y[i]) for i in range(20)]
    for given in (samples, samples[:2]):
        with pytest.raises(TypeError, match="a pair .x, y. of tensors is needed"):
            dss.Task.from_module(mlp(), "cross_entropy", given, (X, Y))


def test_augment_is_tried_in_the_dtype_of_the_network():
    turn = torch.eye(4, dtype=torch.float64)
    x = X.double()
    task = dss.Task.from_module(
        mlp().double(), "cross_entropy", (x, Y), (x, Y), augment=lambda x: x @ turn
    )
    assert task.gradients(task.init(1))[1].isfinite().all()
