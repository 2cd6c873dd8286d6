"""Grams of CO2 equivalent per kWh, with source and year."""

from __future__ import annotations

from typing import Any


def intensity(options: dict[str, Any]) -> dict[str, Any]:
    """Carbon intensity of the grid [g/kWh] with source, year and region; null with a reason where it is not known.

    A number in the configuration wins; else CodeCarbon's tables for the region, where it has one, or the country.
    """
    if options["carbon_intensity_g_per_kwh"] is not None:
        value = options["carbon_intensity_g_per_kwh"]
        return _result(value, "configuration", None, options["region"] or options["country_iso_code"])
    if options["country_iso_code"] is None:
        reason = "no place is given: set energy.country_iso_code (and energy.region), or energy.carbon_intensity_g_per_kwh"
        return _result(None, None, None, None) | {"reason": reason}
    from codecarbon.core.emissions import Emissions
    from codecarbon.core.units import Energy
    from codecarbon.external.geography import GeoMetadata
    from codecarbon.input import DataSource

    source = DataSource()
    country, region = options["country_iso_code"], options["region"]
    mix = source.get_global_energy_mix_data()
    if country not in mix:
        return _result(None, None, None, country) | {
            "reason": f"energy.country_iso_code = {country!r} is not in CodeCarbon's table"
        }
    year: int | None = mix[country].get("year")
    place = country
    if region:
        regions = source.get_country_energy_mix_data(country.lower()) if country == "CAN" else {}
        regions = regions or (source.get_country_emissions_data(country.lower()) if country == "USA" else {})
        known = {name.lower() for name in regions}
        if region.lower() not in known:
            reason = (
                f"energy.region = {region!r} is not in CodeCarbon's table of {country} ({', '.join(sorted(known)) or 'none'})"
            )
            return _result(None, None, None, f"{region}, {country}") | {"reason": reason}
        year, place = 2023, f"{region}, {country}"
    geography = GeoMetadata(
        country_iso_code=country,
        country_name=mix[country].get("country_name", country),
        region=region.lower() if region else None,
    )
    kilograms = Emissions(source).get_private_infra_emissions(Energy.from_energy(kWh=1.0), geography)
    return _result(kilograms * 1000, "CodeCarbon's table", year, place)


def _result(value: float | None, source: str | None, year: int | None, region: str | None) -> dict[str, Any]:
    return {"intensity_g_per_kwh": value, "source": source, "year": year, "region": region, "reason": None}
