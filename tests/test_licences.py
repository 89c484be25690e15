"""The page of licences knows every package that pyproject.toml names."""

from .licences import PAGE, declared


def test_every_package_is_on_the_page():
    page = PAGE.read_text(encoding="utf-8")
    assert not [name for name in declared() if f"| {name} |" not in page], (
        "run: python -m tests.licences"
    )


def test_extras_are_named():
    found = declared()
    assert found["numpy"] == {""}
    assert {"serve"} <= found["fastapi"]
