#!/usr/bin/env python3
"""Prints the reference of the module's variables and outputs, from their own descriptions: docs/infra-reference.md.
usage: infra/reference.py"""

import re
from pathlib import Path

MODULE = Path(__file__).parent / "modules/strongroom"


def blocks(kind, text):
    """Name and body of each block of a kind, as `terraform fmt` lays them out."""
    return re.findall(rf'^{kind} "(\w+)" \{{\n(.*?)^\}}', text, re.M | re.S)


def attribute(body, name):
    """An attribute's text, or None."""
    heredoc = re.search(rf"^  {name}\s+= <<-(\w+)\n(.*?)^\s*\1$", body, re.M | re.S)
    if heredoc:
        return " ".join(heredoc[2].split())
    found = re.search(rf"^  {name}\s+= (.*?)(?=^  \w|^  validation|^$|\Z)", body, re.M | re.S)
    return found and found[1].strip()


def unquoted(text):
    return text[1:-1].replace('\\"', '"') if text.startswith('"') else text


def cell(text):
    return text.replace("|", "\\|")


def main():
    print("<!-- Made by infra/reference.py from infra/modules/strongroom; infra/check says when it is not up to date. -->\n")
    print("# The Terraform module: variables and outputs\n")
    print("| variable | type | default | |\n| --- | --- | --- | --- |")
    for name, body in blocks("variable", (MODULE / "variables.tf").read_text()):
        kind = re.sub(r"\s*=\s*", " = ", " ".join(attribute(body, "type").split()))
        default = attribute(body, "default")
        default = "**needed**" if default is None else f"`{' '.join(default.split())}`"
        print(f"| `{name}` | `{cell(kind)}` | {cell(default)} | {cell(unquoted(attribute(body, 'description')))} |")
    print("\n| output | |\n| --- | --- |")
    for name, body in blocks("output", (MODULE / "outputs.tf").read_text()):
        print(f"| `{name}` | {cell(unquoted(attribute(body, 'description')))} |")


if __name__ == "__main__":
    main()
