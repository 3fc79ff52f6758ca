"""How processes share an epoch."""

from fsdino.training.epoch_data import OwnShare


def test_shares_of_an_epoch_take_turns() -> None:
    data = list(range(11))
    parts = [OwnShare(data, 2, rank, 2) for rank in range(2)]  # type: ignore[arg-type]
    assert [list(part) for part in parts] == [[4, 6, 8, 10], [5, 7, 9, 0]]
    assert len(parts[0]) == 6  # of the whole epoch
