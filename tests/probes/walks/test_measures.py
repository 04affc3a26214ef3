"""Are the numbers of a curve those that its shape has?"""

import math

import pytest
import torch

from safetyheads.interventions.paths import Arc, FixedSteps, StraightLine
from safetyheads.probes.walks.measures import (
    area,
    first_above,
    relative_distance,
    response_exponent,
    sharpness,
    steepest,
    transition_width,
    validity,
)


def from_ends(curve):
    """The distances whose d(t) is a curve, of ends that are 7 apart on a line between them."""
    return 7 * curve, 7 * (1 - curve)


@pytest.mark.parametrize("steps", [2, 11, 50])
def test_a_straight_line_has_sharpness_one_and_a_step_one_less_than_its_steps(steps):
    line = torch.arange(float(steps))[None]
    jump = (torch.arange(steps) >= steps // 2).float()[None]
    assert sharpness(3 * line).item() == 1
    assert sharpness(5 * jump).item() == steps - 1
    assert steepest(jump).item() == steps // 2
    assert transition_width(jump).item() <= 0.8 / (steps - 1) + 1e-6
    assert area(line / (steps - 1)).item() == pytest.approx(0.5)
    if steps > 2:
        assert transition_width(line / (steps - 1)).item() == pytest.approx(0.8)


def test_the_steepest_step_of_a_logistic_curve_is_its_midpoint():
    t = torch.linspace(0, 1, 101)
    curve = torch.sigmoid((t - 0.355) / 0.03)[None]
    assert steepest(curve).item() == 36  # from step 35 to step 36, around 0.355
    width = 2 * math.log(9) * 0.03
    assert transition_width(curve).item() == pytest.approx(width, abs=1e-3)
    assert first_above(curve, 0.5).item() == pytest.approx(0.355, abs=1e-3)
    assert area(curve).item() == pytest.approx(1 - 0.355, abs=1e-3)


def test_the_way_back_has_the_mirrored_curve():
    """Also where it does not rise throughout."""
    curve = torch.tensor([[0.0, 0.05, 0.3, 0.05, 0.5, 0.95, 0.7, 0.96, 1.0]])
    back = 1 - curve.flip(-1)
    torch.testing.assert_close(transition_width(back), transition_width(curve))
    torch.testing.assert_close(area(back), 1 - area(curve))
    from_start, to_end = from_ends(curve)
    torch.testing.assert_close(relative_distance(from_start, to_end), curve)


def test_a_level_that_is_never_reached_and_one_that_is_there_at_once():
    curves = torch.tensor([[0.0, 0.2, 0.4], [0.6, 0.8, 1.0]])
    found = first_above(curves, 0.5)
    assert found[0].isnan()
    assert found[1] == 0
    assert first_above(curves, torch.tensor([0.3, 0.9])).tolist() == pytest.approx([0.75, 0.75])


@pytest.mark.parametrize("power", [1.0, 2.0, 3.5])
def test_the_exponent_is_that_of_the_power(power):
    along = torch.linspace(0, 8, 51)[None]
    assert response_exponent(0.3 * along**power, along).item() == pytest.approx(power, abs=1e-4)
    assert response_exponent(along, along, small=0.04).isnan()  # two steps say nothing
    assert response_exponent(0 * along, along).isnan()


def test_curves_that_are_none_are_told():
    good, alike = torch.arange(4.0), torch.tensor([0.0, 2.0, 1.0, 1e-6])
    broken = torch.tensor([0.0, torch.nan, 1.0, 2.0])
    curves = torch.stack([good, alike, broken])
    assert validity(curves, curves) == ("", "ends alike", "not finite")
    assert validity(0 * curves[:1], curves[:1]) == ("ends alike",)
    assert validity(curves[2:], curves[2:]) == ("not finite",)


def test_an_arc_keeps_norms_and_turns_evenly():
    start, end = torch.tensor([[2.0, 0, 0], [1, 1, 1]]), torch.tensor([[0, 4.0, 0], [2, 2, 2]])
    points = torch.stack([step.points for step in Arc(1, start, end).steps(5)], 1)
    torch.testing.assert_close(points[0].norm(dim=-1), torch.tensor([2.0, 2.5, 3.0, 3.5, 4.0]))
    angles = torch.atan2(points[0, :, 1], points[0, :, 0])
    torch.testing.assert_close(angles, torch.linspace(0, math.pi / 2, 5))
    line = torch.stack([step.points for step in StraightLine(1, start, end).steps(5)], 1)
    torch.testing.assert_close(points[1], line[1])  # ends in one direction: no turn
    shifted = Arc(1, start, end, torch.tensor([5.0, -3.0, 2.0])).steps(5)
    assert torch.equal(shifted[0].points, start)
    assert torch.equal(shifted[-1].points, end)
    moved = Arc(1, start + 1, end + 1, torch.ones(3)).steps(5)
    torch.testing.assert_close(torch.stack([s.points for s in moved], 1) - 1, points)


def test_fixed_steps_have_one_size_for_all():
    start, end = torch.zeros(2, 2), torch.tensor([[3.0, 4.0], [0.0, 0.1]])
    steps = FixedSteps(0, start, end, 0.5).steps(3)
    torch.testing.assert_close(steps[2].points, torch.tensor([[0.6, 0.8], [0.0, 1.0]]))
    assert [step.share for step in steps] == [0, 0.5, 1]
