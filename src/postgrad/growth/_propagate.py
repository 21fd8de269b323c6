"""How the dimensions of an operation's result follow from those of what it is given, for the operations torch exports.

Each rule takes the values that an operation reads and gives those that it makes; on the way it makes dimensions equal
that must be, notes which dimensions of which weights are summed over, and fixes what cannot be widened. An operation
without a rule fixes everything that it touches.
"""

from __future__ import annotations

from postgrad.growth import _element_rules, _layer_rules, _shape_rules
from postgrad.growth._operation import Rule, Step, Values, unknown

RULES: dict[str, Rule] = {**_element_rules.RULES, **_layer_rules.RULES, **_shape_rules.RULES}


def follow(step: Step) -> Values:
    """What an operation makes, by its rule; without one everything it reads is fixed, and its result is too."""
    known = RULES.get(step.name)
    made = known(step) if known else unknown(step, "is not among the operations that growth can follow")
    step.notes.steps.append((step, made))
    return made
