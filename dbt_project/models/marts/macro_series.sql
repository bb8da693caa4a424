with numbered as (
    select
        series_id,
        observation_date,
        event_timestamp,
        known_at,
        value,
        embargo_seconds,
        flags,
        batch_id,
        (row_number() over (partition by series_id, observation_date order by known_at))::integer as vintage_number
    from {{ ref('int_macro_vintages') }}
)

select
    series_id,
    observation_date,
    event_timestamp,
    known_at,
    value,
    vintage_number,
    vintage_number = 1 as is_first_print,
    embargo_seconds,
    flags,
    batch_id
from numbered
