"""Units of measurement: what a unit word measures, and its size in base units. Currencies never convert into each other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal
from typing import NamedTuple


class Unit(NamedTuple):
    """dimension: e.g. "length", "length^2", "length/time"; factor: how many base units one of it is."""

    dimension: str
    factor: Decimal


_PREFIXES = {"n": "nano 纳 -9", "μ": "micro 微 -6", "m": "milli 毫 -3", "c": "centi 厘 -2", "d": "deci 分 -1", "-": "  0", "k": "kilo 千 3",
             "M": "mega 兆 6", "G": "giga 吉 9"}  # fmt: skip
"""English and Chinese prefix of the names of a unit, and the power of ten."""
_METRIC = {
    "length": ("n μ m c d - k", "nm μm mm cm dm m km", "meter metre 米", 0),
    "mass": ("μ m - k", "μg mg g kg", "gram 克", 0),
    "length^3": ("μ m -", "μl ml l", "liter litre 升", -3),
    "time": ("μ m -", "μs ms s", "second 秒", 0),
    "frequency": ("- k M G", "hz khz mhz ghz", "hertz 赫兹", 0),
    "power": ("m - k M", "mW W kw MW", "watt 瓦", 0),
    "energy": ("- k M", "J kj MJ", "joule 焦耳", 0),
    "energy in calories": ("- k", "cal kcal", "calorie 卡", 0),
    "voltage": ("m - k", "mV V kv", "volt 伏", 0),
    "current": ("m -", "mA A", "ampere 安培", 0),
    "resistance": ("- k", "Ω kΩ", "ohm 欧姆", 0),
    "force": ("- k", "N kN", "newton 牛顿", 0),
    "pressure": ("- k", "pa kpa", "pascal 帕", 0),
}
"""From a dimension to the prefixes in use, the symbols with each, the names without, and the power of ten of the bare unit."""
_OTHER = {
    "length": "0.000001: micron microns; 1000: 公里; 0.0254: in inch inches; 0.3048: ft foot feet; 0.9144: yd yard yards; "
    "1609.344: mi mile miles",
    "mass": "0.000001: mcg; 1000: 公斤; 1000000: t tonne tonnes 吨; 453.59237: lb lbs; 28.349523125: oz ounce ounces",
    "mass or money": "1: pound pounds 磅",
    "time": "1: sec secs; 60: min mins minute minutes 分钟 分; 3600: h hr hrs hour hours 小时; 86400: day days 天; 604800: week weeks 周",
    "months": "1: month months 个月; 12: year years yr yrs",
    "length^2": "10000: ha hectare hectares 公顷; 4046.8564224: acre acres 英亩",
    "length^3": "0.000001: cc; 0.003785411784: gallon gallons 加仑",
    "length/time": "0.44704: mph",
    "current": "1: amp amps",
    "resistance": "1000: kilohm kilohms",
    "energy": "1000: 千焦",
    "amount": "1: mol mole moles 摩尔",
    "pressure": "101325: atm atmosphere atmospheres",
    "angle": "1: ° deg degree degrees 度",
    "temperature in C": "1: °c celsius 摄氏度",
    "temperature in K": "1: K kelvin kelvins 开尔文",
    "temperature in F": "1: °f fahrenheit 华氏度",
    "dollars": "1: $ usd dollar dollars 美元; 0.01: ¢ cent cents 美分",
    "euros": "1: € eur euro euros 欧元",
    "pounds": "1: £ gbp",
    "yuan": "0.1: 角; 1: ¥ rmb cny yuan 元 人民币",
}
"""From a dimension to the size and the names of its other units."""


def _units() -> Iterator[tuple[str, Unit]]:
    for dimension, (prefixes, symbols, names, base) in _METRIC.items():
        for sign, symbol in zip(prefixes.split(), symbols.split(), strict=True):
            english, chinese, power = _PREFIXES[sign].split(" ")
            unit = Unit(dimension, Decimal(1).scaleb(int(power) + base))
            *latin, han = names.split()
            for name in (symbol, chinese + han, *(f"{english}{name}{plural}" for name in latin for plural in ("", "s"))):
                yield name, unit
    for dimension, table in _OTHER.items():
        for size, names in (entry.split(": ") for entry in table.split("; ")):
            yield from ((name, Unit(dimension, Decimal(size))) for name in names.split())


# A name with a capital counts in this spelling alone: mW is no MW, and "2v" is twice a speed.
_UNITS = dict(_units())
_POWERS = {"square": 2, "sq": 2, "cubic": 3, "平方": 2, "立方": 3}

CURRENCY_SIGNS = "$€£¥"
_NAMES_BY_LENGTH = sorted((name for name in _UNITS if name not in CURRENCY_SIGNS), key=len, reverse=True)
_WORD = "|".join(re.escape(name) if name == name.lower() else f"(?-i:{re.escape(name)})" for name in _NAMES_BY_LENGTH)
# "4 A" is a current and "4A" a label, "300 K" a temperature and "300K" a number of thousands.
_NO_LABEL = r"(?:(?<!\d)|(?-i:(?![AK](?![A-Za-z]))))"
# "25 degrees Celsius" is 25 °C.
_TERM = rf"(?:(?:degrees?\s+(?=celsius|fahrenheit)|(?:square|cubic)\s+|sq\.?\s+|平方|立方)?(?:{_WORD})(?:\^?[23](?!\d))?)"
PATTERN = rf"[{CURRENCY_SIGNS}](?![\d.])|{_NO_LABEL}{_TERM}(?:\s*(?:/|\*|per\b)\s*{_TERM}){{0,3}}(?![a-zA-Z])"
"""A unit as it follows a number, in text that went through NFKC and has superscripts as ^2."""

_TERM_PARTS = re.compile(rf"(?i)(?:degrees?\s+(?=celsius|fahrenheit))?(square|cubic|sq|平方|立方)?\.?\s*({_WORD})\^?([23])?")
_PER = re.compile(r"\s*(?:/|\bper\b)\s*")


_KINDRED = (
    frozenset({"temperature in C", "temperature in K", "temperature in F"}),
    frozenset({"time", "months"}),
    frozenset({"energy", "energy in calories"}),
    frozenset({"mass", "mass or money"}),
    frozenset({"pounds", "mass or money"}),
)
"""Dimensions that measure the same, though not by one factor that everybody means."""


def may_convert(left: Unit, right: Unit) -> bool:
    """Whether two units of unequal dimensions may measure the same, so that other numbers may be one amount: 98.6 °F and 37 °C."""
    return any({left.dimension, right.dimension} <= kindred for kindred in _KINDRED)


def read_unit(text: str) -> Unit | None:
    """The unit that `text` names ("cm", "square meters", "km/h", "$"), or None."""
    sides = [_read_term(side) for side in _PER.split(text.strip())]
    if len(sides) == 1:
        return sides[0]
    if len(sides) != 2 or sides[0] is None or sides[1] is None:
        return None
    return Unit(f"{sides[0].dimension}/{sides[1].dimension}", sides[0].factor / sides[1].factor)


def _read_term(text: str) -> Unit | None:
    if text in CURRENCY_SIGNS:
        return _UNITS.get(text)
    match = _TERM_PARTS.fullmatch(text)
    if match is None:
        return None
    name = match.group(2)
    unit = _UNITS.get(name) or _UNITS[name.lower()]
    power = _POWERS.get((match.group(1) or "").lower(), 1) * int(match.group(3) or 1)
    return unit if power == 1 else Unit(f"{unit.dimension}^{power}", unit.factor**power)
