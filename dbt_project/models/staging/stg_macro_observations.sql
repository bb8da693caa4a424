with observations as (
    select
        upper(trim(series_id)) as series_id,
        observation_date::date as observation_date,
        event_timestamp::timestamptz as event_timestamp,
        known_at::timestamptz as known_at,
        trim(source) as source,
        value::double precision as value,
        flags::bigint as flags,
        batch_id::bigint as batch_id
    from {{ source('raw', 'us_macro') }}
    where dataset = 'us_macro'
)

select
    observations.series_id,
    observations.observation_date,
    observations.event_timestamp,
    observations.known_at,
    observations.source,
    observations.value,
    observations.flags,
    observations.batch_id,
    catalogue.unit,
    catalogue.minimum,
    catalogue.maximum,
    coalesce(catalogue.embargo_seconds, 0) as embargo_seconds,
    catalogue.least_days,
    catalogue.greatest_days,
    observations.value not in ('NaN', 'Infinity', '-Infinity')
    and observations.value between coalesce(catalogue.minimum, '-Infinity') and coalesce(catalogue.maximum, 'Infinity')
    and observations.known_at >= observations.event_timestamp as is_plausible,
    row_number() over (
        partition by observations.series_id, observations.observation_date
        order by observations.event_timestamp desc, observations.known_at desc, observations.source
    ) = 1 as is_newest
from observations
left join {{ macro_series_catalogue() }} on catalogue.series_id = observations.series_id
