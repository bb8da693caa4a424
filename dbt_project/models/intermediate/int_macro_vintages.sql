-- A version is a vintage when it became the current one at the instant it was known, and says another value than the one before:
-- a republished value is not news, and a late correction of a superseded release was never what a reader would have used.
with first_of_instant as (
    select distinct on (series_id, observation_date, stg_macro_observations.known_at)
        series_id,
        observation_date,
        event_timestamp,
        known_at + embargo_seconds * interval '1 second' as known_at,
        value,
        embargo_seconds,
        flags,
        batch_id
    from {{ ref('stg_macro_observations') }} as stg_macro_observations
    where is_plausible
    order by series_id, observation_date, stg_macro_observations.known_at, event_timestamp desc, source
),

with_earlier as (
    select
        *,
        max(event_timestamp) over (
            partition by series_id, observation_date order by known_at rows between unbounded preceding and 1 preceding
        ) as newest_event_timestamp
    from first_of_instant
),

current_when_known as (
    select
        *,
        lag(value) over (partition by series_id, observation_date order by known_at) as previous_value
    from with_earlier
    where newest_event_timestamp is null or event_timestamp >= newest_event_timestamp
)

select
    series_id,
    observation_date,
    event_timestamp,
    known_at,
    value,
    embargo_seconds,
    flags,
    batch_id
from current_when_known
where previous_value is distinct from value
