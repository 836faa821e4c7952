"""The settings of training: made, checked and documented once."""

import dataclasses
import inspect
import math
import re

import pytest

import dss
from dss.descent import Training
from dss.status import OF_STRINGS, Status

FUNCTIONS = [dss.train_to, dss.train_endpoints, dss.find_strings]


def test_every_setting_is_documented():
    doc = inspect.getdoc(Training)
    assert [f.name for f in dataclasses.fields(Training) if f"    {f.name}: " not in doc] == []


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_functions_that_train_show_the_settings_with_their_defaults(function):
    shown = inspect.signature(function).parameters
    for field in dataclasses.fields(Training):
        assert shown[field.name].kind is inspect.Parameter.KEYWORD_ONLY
        assert shown[field.name].default == field.default


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_an_unknown_argument_is_refused_with_the_known_ones(function, quad64):
    thetas = quad64.init(2)
    arguments = {
        dss.train_to: (quad64, thetas, 0.1),
        dss.train_endpoints: (quad64, 2, [0.1]),
        dss.find_strings: (quad64, thetas, thetas, 0.1),
    }[function]
    with pytest.raises(TypeError, match="unknown argument 'learning_rate'; .* optimizer, lr, "):
        function(*arguments, learning_rate=0.1)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"optimizer": "lbfgs"}, "unknown optimizer 'lbfgs'; known: rmsprop, adam, sgd"),
        ({"lr": -1.0}, "lr is -1.0; a finite number > 0 is needed"),
        ({"lr": math.inf}, "lr is inf"),
        ({"max_steps": 2.5}, "max_steps is 2.5; a whole number >= 0 is needed"),
        ({"max_steps": math.inf}, "max_steps is inf"),
        ({"patience": 0}, "patience is 0; a whole number >= 1 is needed"),
        ({"check_every": -3}, "check_every is -3"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_a_setting_out_of_range_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Training(**settings)


@pytest.mark.parametrize("value", ["3", True, [3], {}, 1j])
@pytest.mark.parametrize("name", ["lr", "batch_size", "max_steps", "patience", "check_every"])
def test_a_setting_that_is_no_number_is_refused(name, value):
    with pytest.raises(TypeError, match=re.escape(f"{name} is {value!r}; ")):
        Training(**{name: value})


def test_whole_numbers_may_be_written_as_floats():
    assert Training(max_steps=1e4, patience=1e3) == Training(max_steps=10_000, patience=1_000)


def test_every_ending_that_is_a_failure_has_its_advice():
    well = {Status.CONNECTED, Status.REACHED}
    assert {status for status in Status if not status.advice} == well
    assert all(status.meaning for status in Status)
    assert len(OF_STRINGS) == 4


def test_an_ending_is_text_in_tables_and_messages(ring, point):
    string = dss.find_string(ring, point(1, 0), point(-1, 0), 0.3, max_depth=0)
    assert f"{string.status}" == string.summary()["status"] == "depth exhausted"
    assert type(string.summary()["status"]) is str
    with pytest.raises(ValueError, match="what helps: a larger L0, or train it further"):
        dss.find_string(ring, point(1, 0), point(-0.5, 0), 0.3)


def test_a_batch_size_below_one_is_refused_when_the_task_is_made(quad64):
    train, test = quad64.splits["train"], quad64.splits["test"]
    with pytest.raises(ValueError, match="batch_size is 0; a whole number >= 1 is needed"):
        dss.Task.from_module(quad64.module, "mse", train, test, batch_size=0)
