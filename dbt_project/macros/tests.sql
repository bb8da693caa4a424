{#- Generic tests. Each selects the whole failing rows, so that the failed check can show them. -#}

{% test not_null(model, column_name) %}
    select *
    from {{ model }}
    where {{ column_name }} is null
{% endtest %}

{% test unique_combination(model, columns) %}
    select {{ columns | join(', ') }}, count(*) as occurrences
    from {{ model }}
    group by {{ columns | join(', ') }}
    having count(*) > 1
{% endtest %}

{% test finite(model, column_name) %}
    select *
    from {{ model }}
    where {{ column_name }} in ('NaN', 'Infinity', '-Infinity')
{% endtest %}

{% test not_before(model, column_name, earlier) %}
    select *
    from {{ model }}
    where {{ column_name }} < {{ earlier }}
{% endtest %}

{#- Bounds are columns of the model and inclusive; a row without bounds passes. -#}
{% test within(model, column_name, minimum, maximum) %}
    select *
    from {{ model }}
    where {{ column_name }} not between {{ minimum }} and {{ maximum }}
{% endtest %}

{#- Every combination of the columns in the rows of `other` that satisfy `condition` is in the model. -#}
{% test covers(model, other, columns, condition) %}
    select {{ columns | join(', ') }} from {{ other }} where {{ condition }}
    except
    select {{ columns | join(', ') }} from {{ model }}
{% endtest %}
