"""Names for messages."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sparsetvm.frontend.names import UniqueNames, display_name, display_names, display_shape


@given(st.text(alphabet=st.characters(exclude_categories=())))
def test_display_name_is_printable_and_short(name):
    shown = display_name(name)
    assert shown.isprintable()
    assert len(shown) <= 160
    shown.encode()


@given(st.text(alphabet=st.characters(categories=("L", "N", "P")), max_size=100))
def test_display_name_keeps_printable_names(name):
    assert display_name(name) == name


def test_display_name_escapes_control_and_direction_characters():
    assert display_name("a\x1b[31m\n\u202eb") == "a\\x1b[31m\\n\\u202eb"


def test_display_names_counts_what_it_leaves_out():
    assert display_names(["a", "b", "c"], limit=2) == "a, b and 1 more"
    assert display_names(["a", "b"], limit=2) == "a, b"


def test_display_shape_is_what_the_command_line_takes():
    assert display_shape((1, 3, 224, 224)) == "1x3x224x224"
    assert display_shape(()) == "scalar"


@given(st.lists(st.sampled_from(["a", "a.1", "b"]), max_size=12))
def test_unique_names_never_repeat(stems):
    give, given_out = UniqueNames({"b", "b.1"}), {"b", "b.1"}
    for stem in stems:
        name = give(stem)
        assert name == stem or name.startswith(f"{stem}.")
        assert name not in given_out
        given_out.add(name)


def test_unique_names_takes_no_square_of_the_number_of_equal_names():
    class Counting(set):
        asked = 0

        def __contains__(self, name):
            Counting.asked += 1
            return super().__contains__(name)

    give = UniqueNames(Counting())
    for _ in range(1000):
        give("same")
    assert Counting.asked < 4000
