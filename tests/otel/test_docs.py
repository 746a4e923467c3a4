import tomllib
from pathlib import Path

from tailspan_otel import attributes

ROOT = Path(__file__).parent.parent.parent


def test_every_attribute_is_documented() -> None:
    names = [value for name, value in vars(attributes).items() if name.isupper() and isinstance(value, str)]
    documented = (ROOT / "docs/attributes.md").read_text()
    assert [name for name in names if f"`{name}`" not in documented] == []
    assert attributes.ROUTE in names


def test_the_package_in_other_peoples_services_stays_tiny() -> None:
    project = tomllib.loads((ROOT / "otel/pyproject.toml").read_text())["project"]
    names = [dependency.partition(">")[0] for dependency in project["dependencies"]]
    assert names == ["opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http"]
    assert list(project["optional-dependencies"]) == ["fastapi"]
