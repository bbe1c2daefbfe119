"""Base class of all recipe sections."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Frozen pydantic model without unknown keys. Field docstrings are the descriptions in the JSON schema."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())
