"""Identity adapters, one record a file: `dladiff.settings.adapters` reads them."""
