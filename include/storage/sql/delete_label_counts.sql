delete from staging.label_counts where source = %(source)s
