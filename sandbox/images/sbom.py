"""What is in an image, as an SPDX 2.3 document: every Debian package, Go module and wheel with version and licence."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from sandbox import paths
from sandbox.images.ingredients import Ingredients, Item
from sandbox.images.recipe import Recipe

UNKNOWN = "NOASSERTION"
# the document describes content, and the same content must give the same bytes
_CREATED = "1970-01-01T00:00:00Z"
_KINDS = {
    "debian": ("pkg:deb/debian/{name}@{version}", "Debian package"),
    "go": ("pkg:golang/{name}@{version}", "Go module"),
    "wheel": ("pkg:pypi/{name}@{version}", "wheel from PyPI"),
}
_SPDX_ID = re.compile(r"[^A-Za-z0-9.-]")


def path(recipe: Recipe) -> Path:
    """Where the document of an image lies once it was built here."""
    return paths.cache_dir() / "sbom" / f"{recipe.name}-{recipe.key}.spdx.json"


def document(recipe: Recipe, ingredients: Ingredients) -> bytes:
    """The SPDX document of an image, as JSON."""
    packages = [
        _package(item) for item in sorted(ingredients.items, key=lambda item: (item.kind, item.name, item.version))
    ]
    root = {
        "SPDXID": "SPDXRef-image",
        "name": recipe.name,
        "versionInfo": recipe.spec.version,
        "downloadLocation": UNKNOWN,
        "filesAnalyzed": False,
        "licenseConcluded": UNKNOWN,
        "licenseDeclared": UNKNOWN,
        "copyrightText": UNKNOWN,
        "primaryPackagePurpose": "CONTAINER",
    }
    contained = [
        {"spdxElementId": "SPDXRef-image", "relationshipType": "CONTAINS", "relatedSpdxElement": package["SPDXID"]}
        for package in packages
    ]
    described = {
        "spdxElementId": "SPDXRef-DOCUMENT",
        "relationshipType": "DESCRIBES",
        "relatedSpdxElement": "SPDXRef-image",
    }
    body = {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": recipe.ref,
        "documentNamespace": f"https://ai-k8s-sandbox.invalid/spdx/{recipe.name}/{recipe.key}",
        "creationInfo": {"created": _CREATED, "creators": ["Tool: ai-k8s-sandbox"]},
        "packages": [root, *packages],
        "relationships": [described, *contained],
    }
    return json.dumps(body, indent=1).encode()


def write(recipe: Recipe, body: bytes) -> None:
    """Keep a document in the cache."""
    target = path(recipe)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_suffix(".draft")
    draft.write_bytes(body)
    draft.replace(target)


def count(target: Path) -> tuple[int, int]:
    """How many things a document lists, and of how many the licence is not known."""
    packages = json.loads(target.read_text(encoding="utf-8"))["packages"][1:]
    unknown = sum(package["licenseDeclared"] == UNKNOWN and "licenseComments" not in package for package in packages)
    return len(packages), unknown


def _package(item: Item) -> dict[str, Any]:
    pattern, words = _KINDS[item.kind]
    package: dict[str, Any] = {
        "SPDXID": f"SPDXRef-{item.kind}-{_SPDX_ID.sub('-', f'{item.name}-{item.version}')}",
        "name": item.name,
        "versionInfo": item.version,
        "downloadLocation": UNKNOWN,
        "filesAnalyzed": False,
        "licenseConcluded": UNKNOWN,
        "licenseDeclared": item.licence or UNKNOWN,
        "copyrightText": UNKNOWN,
        "comment": words,
        "externalRefs": [
            {
                "referenceCategory": "PACKAGE-MANAGER",
                "referenceType": "purl",
                "referenceLocator": pattern.format(name=item.name, version=item.version),
            }
        ],
    }
    if item.words:
        package["licenseComments"] = item.words
    return package
