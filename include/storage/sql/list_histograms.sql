select field, low, high, rows from staging.histograms where source = %(source)s order by field, low
