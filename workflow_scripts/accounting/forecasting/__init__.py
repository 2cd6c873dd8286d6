"""What a forecast is made of: past records, work per stage, prices, devices."""
