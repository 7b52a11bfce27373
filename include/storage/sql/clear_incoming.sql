delete from {incoming} where file_group = %(file_group)s
