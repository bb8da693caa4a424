{#- Reports the columns of the model just built and of its parents on the log, in the form from which dagster-dbt derives column schema
    and column lineage. Silent unless the log is JSON, as
    dagster-dbt reads it. -#}
{% macro log_columns() -%}
    {%- if execute and flags.LOG_FORMAT == 'json' -%}
        {%- set parents = {} -%}
        {%- for unique_id in model.depends_on.nodes -%}
            {%- set parent = graph.nodes.get(unique_id) or graph.sources.get(unique_id) -%}
            {%- set relation = api.Relation.create(parent.database, parent.schema, parent.identifier or parent.alias) -%}
            {%- do parents.update({relation.render(): {'columns': columns_of(relation)}}) -%}
        {%- endfor -%}
        {%- do log(tojson({'columns': columns_of(this), 'parents': parents}), info=true) -%}
    {%- endif -%}
{%- endmacro %}

{% macro columns_of(relation) -%}
    {%- set columns = {} -%}
    {%- for column in adapter.get_columns_in_relation(relation) -%}
        {%- do columns.update({column.name: {'data_type': column.data_type}}) -%}
    {%- endfor -%}
    {{ return(columns) }}
{%- endmacro %}
