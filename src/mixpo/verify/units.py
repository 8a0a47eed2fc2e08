"""Units of measurement: what a unit word measures, and its size in base units. Currencies never convert into each other."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import NamedTuple


class Unit(NamedTuple):
    """dimension: e.g. "length", "length^2", "length/time"; factor: how many base units one of it is."""

    dimension: str
    factor: Decimal


_NAMES = {
    ("length", "0.000000001"): "nm nanometer nanometers 纳米",
    ("length", "0.000001"): "μm micrometer micrometers micron microns 微米",
    ("length", "0.001"): "mm millimeter millimeters millimetre millimetres 毫米",
    ("length", "0.01"): "cm centimeter centimeters centimetre centimetres 厘米",
    ("length", "0.1"): "dm decimeter decimeters 分米",
    ("length", "1"): "m meter meters metre metres 米",
    ("length", "1000"): "km kilometer kilometers kilometre kilometres 千米 公里",
    ("length", "0.0254"): "in inch inches",
    ("length", "0.3048"): "ft foot feet",
    ("length", "0.9144"): "yd yard yards",
    ("length", "1609.344"): "mi mile miles",
    ("mass", "0.000001"): "μg mcg microgram micrograms 微克",
    ("mass", "0.001"): "mg milligram milligrams 毫克",
    ("mass", "1"): "g gram grams 克",
    ("mass", "1000"): "kg kilogram kilograms 千克 公斤",
    ("mass", "1000000"): "t tonne tonnes 吨",
    ("mass", "453.59237"): "lb lbs",
    ("mass or money", "1"): "pound pounds 磅",
    ("mass", "28.349523125"): "oz ounce ounces",
    ("time", "0.000001"): "μs microsecond microseconds 微秒",
    ("time", "0.001"): "ms millisecond milliseconds 毫秒",
    ("time", "1"): "s sec secs second seconds 秒",
    ("time", "60"): "min mins minute minutes 分钟 分",
    ("time", "3600"): "h hr hrs hour hours 小时",
    ("time", "86400"): "day days 天",
    ("time", "604800"): "week weeks 周",
    ("months", "1"): "month months 个月",
    ("months", "12"): "year years yr yrs",
    ("length^2", "10000"): "ha hectare hectares 公顷",
    ("length^2", "4046.8564224"): "acre acres 英亩",
    ("length^3", "0.000000001"): "μl microliter microliters microlitre microlitres 微升",
    ("length^3", "0.000001"): "ml milliliter milliliters millilitre millilitres cc 毫升",
    ("length^3", "0.001"): "l liter liters litre litres 升",
    ("length^3", "0.003785411784"): "gallon gallons 加仑",
    ("length/time", "0.44704"): "mph",
    ("frequency", "1"): "hz hertz 赫兹",
    ("frequency", "1000"): "khz",
    ("frequency", "1000000"): "mhz",
    ("frequency", "1000000000"): "ghz",
    ("power", "0.001"): "mW",
    ("power", "1"): "W watt watts 瓦",
    ("power", "1000"): "kw kilowatt kilowatts 千瓦",
    ("power", "1000000"): "MW megawatt megawatts 兆瓦",
    ("energy", "1"): "J joule joules 焦耳",
    ("energy", "1000"): "kj kilojoule kilojoules 千焦",
    ("energy", "1000000"): "MJ",
    ("energy in calories", "1"): "cal calorie calories",
    ("energy in calories", "1000"): "kcal",
    ("voltage", "0.001"): "mV millivolt millivolts",
    ("voltage", "1"): "V volt volts 伏",
    ("voltage", "1000"): "kv kilovolt kilovolts",
    ("current", "0.001"): "mA milliampere milliamperes",
    ("current", "1"): "A amp amps ampere amperes 安培",
    ("resistance", "1"): "Ω ohm ohms 欧姆",
    ("resistance", "1000"): "kΩ kilohm kilohms kiloohm kiloohms",
    ("force", "1"): "N newton newtons 牛顿",
    ("force", "1000"): "kN kilonewton kilonewtons",
    ("amount", "1"): "mol mole moles 摩尔",
    ("pressure", "1"): "pa pascal pascals 帕",
    ("pressure", "1000"): "kpa",
    ("pressure", "101325"): "atm atmosphere atmospheres",
    ("angle", "1"): "° deg degree degrees 度",
    ("temperature in C", "1"): "°c celsius 摄氏度",
    ("temperature in K", "1"): "K kelvin kelvins 开尔文",
    ("temperature in F", "1"): "°f fahrenheit 华氏度",
    ("dollars", "1"): "$ usd dollar dollars 美元",
    ("dollars", "0.01"): "¢ cent cents 美分",
    ("euros", "1"): "€ eur euro euros 欧元",
    ("pounds", "1"): "£ gbp",
    ("yuan", "0.1"): "角",
    ("yuan", "1"): "¥ rmb cny yuan 元 人民币",
}
# A name with a capital counts in this spelling alone: mW is no MW, and "2v" is twice a speed.
_UNITS = {name: Unit(dimension, Decimal(factor)) for (dimension, factor), names in _NAMES.items() for name in names.split()}
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
