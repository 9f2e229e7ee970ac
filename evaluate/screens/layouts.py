"""Layouts of the kinds of screens: where labels and values stand. One or more of each kind are held out."""

from collections.abc import Mapping

from . import words
from .sheets import Layout, Sheet
from .words import Maker

# field -> how it is labelled, and what its values are
LABELS: dict[str, tuple[str, ...]] = {
    "origin": ("From", "Origin"),
    "destination": ("To", "Destination"),
    "date": ("Date", "Day"),
    "time": ("Time", "Departure"),
    "seat": ("Seat", "Place"),
    "price": ("Price", "Total", "Fare"),
    "name": ("Name", "Passenger"),
    "platform": ("Platform", "Track"),
    "city": ("City", "Town"),
    "phone": ("Phone", "Tel"),
    "code": ("Code", "Number"),
    "item": ("Item", "Dish"),
    "amount": ("Amount", "Pieces"),
}
MAKERS: dict[str, Maker] = {
    "origin": words.city,
    "destination": words.city,
    "date": words.date,
    "time": words.clock,
    "seat": words.seat,
    "price": words.price,
    "name": words.name,
    "platform": words.platform,
    "city": words.city,
    "phone": words.phone,
    "code": words.code,
    "item": words.item,
    "amount": words.amount,
    "message": words.message,
    "line": words.line,
}
RECORDS = {
    "ticket": ("origin", "destination", "date", "time", "seat", "price", "name", "platform", "code"),
    "form": ("name", "city", "phone", "code", "date", "amount"),
    "app": ("origin", "destination", "date", "time", "amount", "price"),
}
TITLES = {
    "ticket": ("TICKET", "Boarding pass", "Ticket"),
    "form": ("Registration", "Your data", "Profile"),
    "app": ("Search", "Flights", "Trains"),
    "board": ("Departures", "DEPARTURES", "Trains"),
    "prices": ("Menu", "MENU", "Our prices", "Cafe"),
    "chart": ("Sales", "Visits", "Votes"),
}
# The column that names a row comes first.
TABLES = {
    "board": (("destination", "time"), ("destination", "time", "platform"), ("destination", "platform")),
    "prices": (("item", "price"),),
}
MOST_ROWS = 8


def _title(sheet: Sheet, kind: str, chance: float) -> int:
    """Write a title on a band, or none; returns where the rest begins."""
    top = sheet.margin
    if sheet.rng.random() >= chance:
        return top
    if sheet.rng.random() < 0.5:
        sheet.fill((0, 0, top + sheet.step, sheet.side), sheet.panel)
    align, x = sheet.choose(("left", sheet.margin), ("centre", sheet.side // 2))
    sheet.write(sheet.choose(*TITLES[kind]), top + sheet.face.size - 1, x, field="title", align=align)
    return top + sheet.step + int(sheet.rng.integers(2, 7))


def _fields(sheet: Sheet, kind: str, most: int) -> list[str]:
    """Choose fields of a record, in any order."""
    known = RECORDS[kind]
    count = min(most, int(sheet.rng.integers(3, len(known) + 1)))
    return [known[i] for i in sheet.rng.permutation(len(known))[:count]]


def _label(sheet: Sheet, field: str, y: int, x: int, room: float, colon: bool = False) -> bool:
    """Write a label of a field that fits; False where none does."""

    def make(rng) -> str:
        return LABELS[field][rng.integers(len(LABELS[field]))] + (":" if colon else "")

    return sheet.write_some(make, y, x, field=field, label=True, room=room)


def _rows_left(sheet: Sheet, top: int, step: int) -> int:
    return max(0, (sheet.bottom - top) // step)


def beside(sheet: Sheet, kind: str, align: str = "left") -> None:
    """A record with each label left of its value."""
    top, step = _title(sheet, kind, 0.7), sheet.step + int(sheet.rng.integers(0, 8))
    colon, column = sheet.rng.random() < 0.5, round(sheet.side * sheet.rng.uniform(0.42, 0.52))
    taken: set[str] = set()
    for number, field in enumerate(_fields(sheet, kind, _rows_left(sheet, top, step))):
        y = top + number * step + sheet.face.size
        if not _label(sheet, field, y, sheet.margin, column - sheet.margin - 3, colon):
            continue
        x = column if align == "left" else sheet.right
        if kind == "form" and align == "left":
            sheet.fill((y - sheet.face.size, column - 3, y + 5, sheet.right), None, sheet.faint)
        room = sheet.right - column
        sheet.write_some(MAKERS[field], y, x, field=field, row=0, room=room, align=align, taken=taken)


def aligned(sheet: Sheet, kind: str) -> None:
    """A record with labels at the left margin and values at the right one."""
    beside(sheet, kind, "right")


def stacked(sheet: Sheet, kind: str, columns: int = 1) -> None:
    """A record with each label above its value, in one column or more."""
    top, step = _title(sheet, kind, 0.6), 2 * sheet.step + int(sheet.rng.integers(0, 7))
    wide = (sheet.right - sheet.margin) // columns
    taken: set[str] = set()
    for number, field in enumerate(_fields(sheet, kind, columns * _rows_left(sheet, top, step))):
        y = top + number // columns * step + sheet.face.size
        x = sheet.margin + number % columns * wide
        if not _label(sheet, field, y, x, wide - 6):
            continue
        y += sheet.step - 1
        if kind != "ticket":
            sheet.fill((y - sheet.face.size - 1, x - 2, y + 5, x + wide - 4), sheet.panel)
        sheet.write_some(MAKERS[field], y, x, field=field, row=0, room=wide - 6, taken=taken)


def two_columns(sheet: Sheet, kind: str) -> None:
    """A record with each label above its value, in two columns."""
    stacked(sheet, kind, 2)


def below(sheet: Sheet, kind: str) -> None:
    """A record with each label in small letters under its value, between lines."""
    top, step = _title(sheet, kind, 0.6), 2 * sheet.step + 6
    taken: set[str] = set()
    for number, field in enumerate(_fields(sheet, kind, _rows_left(sheet, top, step))):
        y = top + number * step + sheet.face.size
        if not _label(sheet, field, y + sheet.step - 2, sheet.margin, sheet.right - sheet.margin):
            continue
        sheet.write_some(MAKERS[field], y, sheet.margin, field=field, row=0, taken=taken)
        sheet.rule(y + sheet.step + 3)


def _table(sheet: Sheet, kind: str, style: str) -> None:
    """Rows of two or three columns; with a header in half of them."""
    columns = sheet.choose(*TABLES[kind])
    if kind == "board" and sheet.rng.random() < 0.5:
        columns = columns[1:2] + columns[:1] + columns[2:]
    top, step = _title(sheet, kind, 0.6), sheet.step + int(sheet.rng.integers(0, 6))
    starts = _starts(sheet, columns)
    if sheet.rng.random() < 0.5:
        for field, (x, room) in zip(columns, starts):
            _label(sheet, field, top + sheet.face.size, x, room)
        top += step
        sheet.rule(top - 1)
    most = min(MOST_ROWS, _rows_left(sheet, top, step))
    taken: dict[str, set[str]] = {field: set() for field in columns}
    for row in range(int(sheet.rng.integers(min(2, most), most + 1))):
        y = top + row * step + sheet.face.size
        if style == "striped" and row % 2:
            sheet.fill((y - sheet.face.size - 1, 0, y - sheet.face.size - 1 + step, sheet.side), sheet.panel)
        elif style == "ruled":
            sheet.rule(y + step - sheet.face.size - 2)
        for field, (x, room) in zip(columns, starts):
            sheet.write_some(MAKERS[field], y, x, field=field, row=row, room=room, taken=taken[field])


SHARES = {"destination": 3.0, "item": 3.0, "time": 1.8, "price": 2.0, "platform": 1.2}


def _starts(sheet: Sheet, columns: tuple[str, ...]) -> list[tuple[int, int]]:
    """Starts of the columns, and how wide the texts of each may be."""
    total, x, found = sum(SHARES[field] for field in columns), sheet.margin, []
    for field in columns:
        wide = round((sheet.right - sheet.margin) * SHARES[field] / total)
        found.append((x, wide - 4))
        x += wide
    return found


def plain(sheet: Sheet, kind: str) -> None:
    """A table without lines."""
    _table(sheet, kind, "plain")


def ruled(sheet: Sheet, kind: str) -> None:
    """A table with lines between its rows."""
    _table(sheet, kind, "ruled")


def striped(sheet: Sheet, kind: str) -> None:
    """A table with every second row on a band."""
    _table(sheet, kind, "striped")


def cards(sheet: Sheet, kind: str) -> None:
    """A card for each row: what names it on the first line, the rest at the right end of it."""
    columns = sheet.choose(*TABLES[kind])[:2]
    top, step = _title(sheet, kind, 0.6), sheet.step + 10
    most = min(MOST_ROWS, _rows_left(sheet, top, step))
    taken: dict[str, set[str]] = {field: set() for field in columns}
    middle = (sheet.margin + sheet.right) // 2
    for row in range(int(sheet.rng.integers(min(2, most), most + 1))):
        y = top + row * step + sheet.face.size
        sheet.fill((y - sheet.face.size - 2, sheet.margin - 4, y + 6, sheet.right + 4), sheet.panel, sheet.faint)
        places = ((sheet.margin, "left", middle - sheet.margin), (sheet.right, "right", sheet.right - middle - 4))
        for field, (x, align, room) in zip(columns, places):
            options = {"row": row, "room": room, "align": align, "taken": taken[field]}
            sheet.write_some(MAKERS[field], y, x, field=field, **options)


def bubbles(sheet: Sheet, kind: str) -> None:
    """A chat: the names of who writes above their messages, on bubbles at the left and at the right."""
    _chat(sheet, lambda row, wide: sheet.margin if row % 2 == 0 else sheet.right - wide)


def thread(sheet: Sheet, kind: str) -> None:
    """A chat with all messages at the left margin, the names above them."""
    _chat(sheet, None)


def _chat(sheet: Sheet, start) -> None:
    step = 2 * sheet.step + int(sheet.rng.integers(4, 10))
    most = min(5, _rows_left(sheet, sheet.margin, step))
    names: set[str] = set()
    said: set[str] = set()
    for row in range(int(sheet.rng.integers(min(2, most), most + 1))):
        y = sheet.margin + row * step + sheet.face.size
        wide = round((sheet.right - sheet.margin) * 0.75)
        x = sheet.margin if start is None else start(row, wide)
        sheet.write_some(words.name, y, x, field="name", row=row, room=wide, taken=names)
        y += sheet.step
        if start is not None:
            sheet.fill((y - sheet.face.size - 1, x - 3, y + 5, x + wide), sheet.panel)
        sheet.write_some(words.message, y, x, field="message", row=row, room=wide - 4, taken=said)


def log(sheet: Sheet, kind: str) -> None:
    """A chat with each name left of its message."""
    step = sheet.step + int(sheet.rng.integers(4, 10))
    most = min(6, _rows_left(sheet, sheet.margin, step))
    column = round(sheet.side * 0.38)
    names: set[str] = set()
    said: set[str] = set()
    for row in range(int(sheet.rng.integers(min(2, most), most + 1))):
        y = sheet.margin + row * step + sheet.face.size
        sheet.write_some(
            words.name, y, sheet.margin, field="name", row=row, room=column - sheet.margin - 4, taken=names
        )
        sheet.write_some(words.message, y, column, field="message", row=row, room=sheet.right - column, taken=said)


def _bars(sheet: Sheet) -> list[tuple[int, tuple[int, int, int]]]:
    """Amounts of three to five bars, no two alike, and their colours."""
    count = int(sheet.rng.integers(3, 6))
    amounts = sheet.rng.permutation(range(5, 100, 4))[:count]
    return [(int(one) + int(sheet.rng.integers(4)), _bar_ink(sheet)) for one in amounts]


def _bar_ink(sheet: Sheet) -> tuple[int, int, int]:
    red, green, blue = (int(level) for level in sheet.rng.integers(70, 190, size=3))
    return red, green, blue


def upright(sheet: Sheet, kind: str) -> None:
    """A chart of upright bars, their amounts above and their names below them."""
    top, bars = _title(sheet, kind, 0.5) + sheet.step, _bars(sheet)
    base, wide = sheet.bottom - sheet.step, (sheet.right - sheet.margin) // len(bars)
    taken: set[str] = set()
    for row, (amount, colour) in enumerate(bars):
        x, height = sheet.margin + row * wide, round((base - top) * amount / 100)
        middle, room = x + wide // 2, wide - 2
        name = {"field": "name", "row": row, "align": "centre", "room": room, "taken": taken}
        if not sheet.write_some(_short, sheet.bottom - 1, middle, **name):
            break
        sheet.fill((base - height, x + 3, base, x + wide - 3), colour)
        sheet.write(str(amount), base - height - 2, middle, field="amount", row=row, align="centre", room=room)
    sheet.rule(base)


def sideways(sheet: Sheet, kind: str) -> None:
    """A chart of bars from left to right, names at their left ends and amounts at their right ones."""
    top, bars = _title(sheet, kind, 0.5), _bars(sheet)
    step, start = (sheet.bottom - top) // len(bars), round(sheet.side * 0.3)
    reach = sheet.right - start - round(2.2 * sheet.face.size)
    taken: set[str] = set()
    for row, (amount, colour) in enumerate(bars):
        y, long = top + row * step, round(reach * amount / 100)
        base, room = y + (step + sheet.face.size) // 2 - 1, start - sheet.margin - 4
        if not sheet.write_some(_short, base, sheet.margin, field="name", row=row, room=room, taken=taken):
            break
        sheet.fill((y + 2, start, y + step - 2, start + long), colour)
        sheet.write(str(amount), base, start + long + 3, field="amount", row=row)


def _short(rng) -> str:
    return words.any_word(rng, 2, 5)


def anywhere(sheet: Sheet, kind: str) -> None:
    """One line of text, anywhere."""
    y = int(sheet.rng.integers(sheet.margin + sheet.face.size, sheet.bottom - 3))
    x = int(sheet.rng.integers(sheet.margin, max(sheet.margin + 1, sheet.side // 2)))
    sheet.write_some(words.line, y, x, field="line", row=0)


def banner(sheet: Sheet, kind: str) -> None:
    """One line of text in the middle of a band."""
    y = int(sheet.rng.integers(sheet.margin + 2 * sheet.face.size, sheet.bottom - sheet.face.size))
    sheet.fill((y - 2 * sheet.face.size, 0, y + sheet.face.size, sheet.side), sheet.panel)
    sheet.write_some(words.line, y, sheet.side // 2, field="line", row=0, align="centre")


# kind -> layouts that are trained on, and those that are not
SEEN: Mapping[str, tuple[Layout, ...]] = {
    "line": (anywhere,),
    "ticket": (beside, stacked, two_columns),
    "form": (beside, stacked, two_columns),
    "app": (beside, stacked, two_columns),
    "board": (plain, ruled, striped),
    "prices": (plain, ruled, striped),
    "chat": (bubbles, thread),
    "chart": (upright,),
}
HELD_OUT: Mapping[str, tuple[Layout, ...]] = {
    "line": (banner,),
    "ticket": (aligned, below),
    "form": (aligned, below),
    "app": (aligned, below),
    "board": (cards,),
    "prices": (cards,),
    "chat": (log,),
    "chart": (sideways,),
}
SCREENS = tuple(SEEN)
