"""Settings of the method: schema, presets, schedules of the compared methods."""
