"""Texts for tests that compare Python's reading of a rule with PostgreSQL's."""

from hypothesis import strategies as st

from analytics_assets.contract import ENDPOINT, EVENT_ID, SOURCE

_characters = st.characters(exclude_characters="\0", exclude_categories=["Cs"])
_hexadecimal = st.text("0123456789abcdefABCDEF-", min_size=30, max_size=40)
TEXTS = {
    EVENT_ID: st.one_of(
        st.text(_characters, max_size=8),
        st.text("0123456789\n+-. \u0667\uff17", max_size=21),
        st.uuids().map(str),
        st.uuids().map(lambda value: f"{value}\n"),
        _hexadecimal,
    ),
    SOURCE: st.sampled_from(["web", "admin", "Web", "web\n", " web", "", "webadmin"])
    | st.text(_characters, max_size=5),
    ENDPOINT: st.one_of(
        st.text(_characters, max_size=8),
        st.builds(
            "{}{}{}".format,
            st.sampled_from(["GET", "(other)", "(unmatched)", "get", "", "OPTIONS", "\nPUT"]),
            st.sampled_from([" ", "  ", "", "\t", "\n"]),
            st.lists(
                st.sampled_from(["/", "//", "/events", "/{id}", "/{7}", "{", "/7", "/7e", "/\u0667", "7", "~", "@"])
                | st.text(_characters, max_size=2),
                max_size=5,
            ).map("".join),
        ),
        st.integers(190, 205).map(lambda length: "GET /".ljust(length, "é" if length % 5 == 0 else "e")),
    ),
}
