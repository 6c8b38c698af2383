"""XML as a tree in which every element knows its line; documents that define entities are refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NoReturn
from xml.parsers import expat

from moesim.desk.cluster_files.faults import Source

DEEPEST = 64
MOST = 200_000


@dataclass(slots=True)
class Element:
    """One element: its name without a namespace, its attributes, what is inside, and its line."""

    name: str
    attributes: dict[str, str]
    line: int
    children: list[Element] = field(default_factory=list)
    text: str = ""

    def named(self, name: str) -> Iterator[Element]:
        """Yield the direct children of one name."""
        return (child for child in self.children if child.name == name)


def parse_xml(source: Source) -> Element:
    """Return the root element.

    A document type, which is where entities are defined (files read from elsewhere, texts that grow without end), has no place in a
    description of a machine and is refused before anything in it is looked at.

    Raises
    ------
    Fault
        With the line.
    """
    top = Element(name="", attributes={}, line=0)
    stack, count = [top], 0
    parser = expat.ParserCreate()
    parser.buffer_text = True

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal count
        count += 1
        if len(stack) > DEEPEST or count > MOST:
            raise source.fault("this XML is nested too deeply or holds too many elements", line=parser.CurrentLineNumber)
        element = Element(name=name.rsplit(":", 1)[-1], attributes=attributes, line=parser.CurrentLineNumber)
        stack[-1].children.append(element)
        stack.append(element)

    def end(_name: str) -> None:
        stack.pop()

    def characters(text: str) -> None:
        stack[-1].text += text

    def refuse(*_: object) -> NoReturn:
        raise source.fault(
            "this XML has a document type (<!DOCTYPE ...>), which could define entities: remove it", line=parser.CurrentLineNumber
        )

    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, characters
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(source.text, True)
    except expat.ExpatError as error:
        raise source.fault(f"this is not XML: {expat.ErrorString(error.code)}", line=error.lineno, column=error.offset + 1) from None
    except (ValueError, LookupError) as error:
        raise source.fault(f"this is not XML: {error}", line=1) from None
    return top.children[0]
