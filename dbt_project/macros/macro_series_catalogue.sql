{#- The declared series as a relation: series_id, unit, minimum, maximum. -#}
{% macro macro_series_catalogue() -%}
    (
        values
        {%- for series_id, declared in var('macro_series').items() %}
        ({{ dbt.string_literal(series_id) }}, {{ dbt.string_literal(declared.unit) }}, {{ declared.minimum }}::double precision, {{ declared.maximum }}::double precision)
        {{- "," if not loop.last }}
        {%- endfor %}
    ) as catalogue (series_id, unit, minimum, maximum)
{%- endmacro %}
