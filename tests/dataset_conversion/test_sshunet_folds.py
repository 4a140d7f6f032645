"""SSH-UNet's folds, against the cases that its rule is documented to give."""

from __future__ import annotations

from nnunet_ext.dataset_conversion.sshunet_folds import sshunet_5fold, sshunet_folds

BTCV_VALIDATION = [
    {22, 2, 7, 29, 1},
    {21, 24, 28, 10, 32},
    {33, 34, 5, 8, 26},
    {25, 27, 3, 30, 23},
    {31, 9, 6, 4},
]


def test_btcv() -> None:
    split = sshunet_5fold("btcv_sshunet")
    assert [{int(case[3:]) for case in val} for _, val in split.folds] == BTCV_VALIDATION
    assert split.test == tuple(f"img{number:04d}" for number in range(35, 41))
    for train, val in split.folds:
        assert len(train) + len(val) == 24
        assert not set(train) & set(val)


def test_amos() -> None:
    split = sshunet_5fold("amos_sshunet")
    assert [len(val) for _, val in split.folds] == [40] * 5
    assert len(set().union(*(val for _, val in split.folds))) == 200
    assert len(split.test) == 100


def test_order_decides() -> None:
    names = [f"case{number}" for number in range(10)]
    assert sshunet_folds(names) == sshunet_folds(list(names))
    assert sshunet_folds(names) != sshunet_folds(names[::-1])
