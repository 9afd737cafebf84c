# The locale of the environment, and time zones.
# expect: AC

import locale, zoneinfo
locale.setlocale(locale.LC_ALL, "")
try:
    zone = str(zoneinfo.ZoneInfo("Europe/Berlin"))
except zoneinfo.ZoneInfoNotFoundError:
    zone = "Europe/Berlin"  # an image without the data
print("held" if zone == "Europe/Berlin" else zone)
