"""How a search or a descent can end, each ending with its meaning and its remedy."""

from enum import StrEnum


class Status(StrEnum):
    """An ending; as text it is its name in tables.

    Attributes:
        meaning: what happened.
        advice: what to try; empty where nothing is wrong.
    """

    def __new__(cls, value: str, meaning: str, advice: str = ""):
        status = str.__new__(cls, value)
        status._value_, status.meaning, status.advice = value, meaning, advice
        return status

    # Of the search for a string.
    CONNECTED = "connected", "every segment is at or below slack * L0 on its grid"
    DEPTH_EXHAUSTED = (
        "depth exhausted",
        "segments are still high at max_depth",
        "a larger max_depth",
    )
    TRAINING_STALLED = (
        "training stalled",
        "a bead did not come down to alpha L0",
        "more max_steps, another lr or optimizer, alpha nearer to 1",
    )
    ENDPOINT_ABOVE_L0 = (
        "endpoint above L0",
        "one of the two networks is above L0",
        "a larger L0, or train it further (dss.train_to)",
    )
    # Of the descent of one network.
    REACHED = "reached", "the metric is at or below the target"
    STALLED = (
        "stalled",
        "the best metric did not fall by 0.1 % within patience steps",
        "more patience, another lr or optimizer",
    )
    BUDGET_SPENT = "budget spent", "max_steps were made", "more max_steps"
    NOT_FINITE = "not finite", "the metric or a parameter became NaN or inf", "a smaller lr"


OF_STRINGS = (
    Status.CONNECTED,
    Status.DEPTH_EXHAUSTED,
    Status.TRAINING_STALLED,
    Status.ENDPOINT_ABOVE_L0,
)
