select source, mode, verdict, texts, counted_at from generation.verdict_counts where run_id = %(run_id)s
order by mode, (verdict = 'accepted') desc, texts desc, verdict, source
