import pytest

from mtrl.run.schedule import Every, Until


def test_every_is_true_once_per_crossing():
    every = Every(10)
    due = [step for step in range(0, 50, 4) if every(step)]
    assert due == [12, 20, 32, 40]


def test_every_is_true_once_when_several_multiples_are_crossed():
    every = Every(10)
    assert every(35)
    assert not every(35)
    assert not every(39)
    assert every(40)


def test_zero_never():
    every = Every(0)
    assert not any(every(step) for step in range(100))


@pytest.mark.parametrize("cut", [0, 5, 9, 10, 11, 30])
def test_every_goes_on_after_resume(cut):
    whole, first, second = Every(10), Every(10), Every(10)
    expected = [whole(step) for step in range(40)]
    before = [first(step) for step in range(cut)]
    second.load_state_dict(first.state_dict())
    assert before + [second(step) for step in range(cut, 40)] == expected


def test_every_may_change_its_interval_on_resume():
    first, second = Every(1000), Every(10)
    first(3005)
    second.load_state_dict(first.state_dict())
    assert not second(3009)
    assert second(3010)


def test_until():
    until = Until(10)
    assert [step for step in (0, 5, 9, 10, 11) if until(step)] == [0, 5, 9]


@pytest.mark.parametrize("make", [lambda: Every(-1), lambda: Until(-1)])
def test_negative_is_refused(make):
    with pytest.raises(ValueError, match="must not be negative"):
        make()
