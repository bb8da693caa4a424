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

{#- The newest observations of each series are as far apart (median, days) as the columns least_days and greatest_days say; one gap is too
    few to tell. -#}
{% test frequency_kept(model, observations) %}
    with dates as (
        select
            series_id,
            observation_date,
            observation_date - lag(observation_date) over (partition by series_id order by observation_date) as days,
            row_number() over (partition by series_id order by observation_date desc) as age,
            least_days,
            greatest_days
        from (select distinct series_id, observation_date, least_days, greatest_days from {{ model }}) as observed
    )

    select series_id, least_days, greatest_days, percentile_cont(0.5) within group (order by days) as median_days
    from dates
    where age < {{ observations }} and days is not null
    group by series_id, least_days, greatest_days
    having count(*) > 1 and percentile_cont(0.5) within group (order by days) not between least_days and greatest_days
{% endtest %}

{#- Of each day, the newest vintage of one series is the difference of those of two others. Exact decimals, as they were published. -#}
{% test difference_of(model, difference, minuend, subtrahend, tolerance) %}
    with newest as (
        select distinct on (series_id, observation_date) series_id, observation_date, value::numeric as value
        from {{ model }}
        where series_id in ('{{ difference }}', '{{ minuend }}', '{{ subtrahend }}')
        order by series_id, observation_date, known_at desc
    )

    select
        observation_date,
        published.value as {{ difference | lower }},
        longer.value as {{ minuend | lower }},
        shorter.value as {{ subtrahend | lower }}
    from (select * from newest where series_id = '{{ difference }}') as published
    inner join (select * from newest where series_id = '{{ minuend }}') as longer using (observation_date)
    inner join (select * from newest where series_id = '{{ subtrahend }}') as shorter using (observation_date)
    where abs(longer.value - shorter.value - published.value) > {{ tolerance }}
{% endtest %}
