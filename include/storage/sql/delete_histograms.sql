delete from staging.histograms where source = %(source)s
