//! Limits that replicas share: puts the questions of [`Shared`] to Redis, tells
//! it the answers, and says that this replica lives.
//!
//! No request comes here: a task of its own asks, in batches. Redis holds, for
//! each account, the moment at which its bucket is full again (the generic cell
//! rate algorithm), by its own clock, in microseconds; and for limits of things
//! at once how many each replica has, until a time.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Pipeline, RedisError, Script, Value};
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior};

use crate::gate::ports::{BoxFuture, Clock, SharedLimits};
use crate::limit::{Answer, Drawn, Question, Shared, What};

use super::host;
use super::redis::Redis;

/// Questions that go in one round trip.
const BATCH: usize = 256;
/// How often this replica says that it lives, and gives back what it does not
/// need.
const BEAT: Duration = Duration::from_secs(1);
/// After so long without a beat a replica counts as gone, and what it had is
/// others'.
const GONE: Duration = Duration::from_secs(5);
/// How long until a Redis that failed is asked again.
const LOOK: Duration = Duration::from_millis(100);
/// The most that a request waits for an answer at a time.
const MOMENT: Duration = Duration::from_millis(2);

/// Units of a quota. Keys: the account. Arguments: the period in microseconds,
/// the count, the burst; units used, wanted, and given back. Answers: units
/// granted, units left, microseconds until there is one.
const DRAW: &str = r"
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local per = tonumber(ARGV[1]) / tonumber(ARGV[2])
local burst = tonumber(ARGV[3]) * per
local full = tonumber(redis.call('GET', KEYS[1]) or now)
full = math.max(full, now)
full = math.max(full + (tonumber(ARGV[4]) - tonumber(ARGV[6])) * per, now)
local room = math.max(math.floor((burst - (full - now)) / per + 0.000001), 0)
local granted = math.min(tonumber(ARGV[5]), room)
full = full + granted * per
if full > now then
  redis.call('SET', KEYS[1], string.format('%.0f', math.ceil(full)), 'PX',
    math.ceil((full - now) / 1000) + 1000)
else
  redis.call('DEL', KEYS[1])
end
local wait = math.max(math.ceil(full - now + per - burst), 0)
return {granted, room - granted, wait}
";

/// Slots. Keys: the account. Arguments: the replica, how many there are, in use
/// here, wanted here, milliseconds until they are given up. Answers: how many
/// this replica may have.
const SET_ASIDE: &str = r"
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local others = 0
local all = redis.call('HGETALL', KEYS[1])
for at = 1, #all, 2 do
  local count, till = string.match(all[at + 1], '^(%d+) (%d+)$')
  if all[at] ~= ARGV[1] then
    if tonumber(till) > now then
      others = others + tonumber(count)
    else
      redis.call('HDEL', KEYS[1], all[at])
    end
  end
end
local room = math.max(tonumber(ARGV[2]) - others, 0)
local mine = math.max(tonumber(ARGV[3]), math.min(tonumber(ARGV[4]), room))
if mine > 0 then
  redis.call('HSET', KEYS[1], ARGV[1], string.format('%d %.0f', mine, now + tonumber(ARGV[5])))
  redis.call('PEXPIRE', KEYS[1], ARGV[5])
else
  redis.call('HDEL', KEYS[1], ARGV[1])
end
return room
";

/// The beat. Keys: the replicas, the memory's mark. Arguments: this replica,
/// milliseconds until it counts as gone, a new mark. Answers: how many replicas
/// live, and the mark, which another one means that Redis has forgotten.
const BEAT_SCRIPT: &str = r"
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - tonumber(ARGV[2]))
redis.call('SET', KEYS[2], ARGV[3], 'NX')
return {redis.call('ZCARD', KEYS[1]), redis.call('GET', KEYS[2])}
";

/// The port that the gate waits at.
pub struct Answers(Arc<Notify>);

/// Asks Redis what [`Shared`] wants to know, for as long as it is run.
pub struct Asking {
    redis: Redis,
    shared: Arc<Shared>,
    clock: Arc<dyn Clock>,
    replica: String,
    due: Arc<Notify>,
    answers: Arc<Notify>,
    draw: Script,
    set_aside: Script,
    beat: Script,
    /// The mark of the memory that Redis had at the last beat.
    mark: Option<String>,
}

/// The shared accounts, what asks for them, and where the gate waits. `replicas`
/// is how many there are at least.
#[must_use]
pub fn shared_limits(
    redis: Redis,
    clock: Arc<dyn Clock>,
    max_keys: usize,
    replicas: NonZeroU32,
) -> (Arc<Shared>, Asking, Answers) {
    let due = Arc::new(Notify::new());
    let answers = Arc::new(Notify::new());
    let wake = Arc::clone(&due);
    let shared = Arc::new(Shared::new(max_keys, replicas, move || wake.notify_one()));
    let asking = Asking {
        redis,
        shared: Arc::clone(&shared),
        clock,
        replica: format!("{:032x}", host::random_bits()),
        due,
        answers: Arc::clone(&answers),
        draw: Script::new(DRAW),
        set_aside: Script::new(SET_ASIDE),
        beat: Script::new(BEAT_SCRIPT),
        mark: None,
    };
    (shared, asking, Answers(answers))
}

impl SharedLimits for Answers {
    fn answered(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            let _ = tokio::time::timeout(MOMENT, self.0.notified()).await;
        })
    }
}

impl Asking {
    /// Asks for ever.
    pub async fn run(mut self) {
        loop {
            let Some(mut connection) = self.redis.connection() else {
                self.away();
                let connected = self.redis.connected();
                if tokio::time::timeout(BEAT, connected).await.is_err() {
                    // Nothing can be told, but what is idle is forgotten.
                    let _none = self.shared.upkeep(self.clock.monotonic());
                }
                continue;
            };
            if let Err(error) = self.serve(&mut connection).await {
                tracing::debug!(%error, "limits cannot be shared at this moment");
                let _ = self.redis.failed(error);
                self.away();
                tokio::time::sleep(LOOK).await;
            }
        }
    }

    /// Asks on this connection until it fails.
    async fn serve(&mut self, connection: &mut MultiplexedConnection) -> Result<(), RedisError> {
        for script in [&self.draw, &self.set_aside, &self.beat] {
            script.prepare_invoke().load_async(connection).await?;
        }
        let mut beat = tokio::time::interval_at(Instant::now(), BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = self.redis.disconnected() => {
                    self.away();
                    return Ok(());
                }
                _ = beat.tick() => {
                    self.beat(connection).await?;
                    let questions = self.shared.upkeep(self.clock.monotonic());
                    for part in questions.chunks(BATCH) {
                        self.ask(connection, part).await?;
                    }
                }
                () = self.due.notified() => loop {
                    let now = self.clock.monotonic();
                    let questions = self.shared.questions(BATCH, now);
                    if questions.is_empty() {
                        break;
                    }
                    self.ask(connection, &questions).await?;
                },
            }
        }
    }

    async fn beat(&mut self, connection: &mut MultiplexedConnection) -> Result<(), RedisError> {
        let new = format!("{:032x}", host::random_bits());
        let gone = u64::try_from(GONE.as_millis()).unwrap_or(u64::MAX);
        let (replicas, mark): (u64, String) = self
            .beat
            .key(self.redis.key("limits:replicas"))
            .key(self.redis.key("limits:mark"))
            .arg(&self.replica)
            .arg(gone)
            .arg(new)
            .invoke_async(connection)
            .await?;
        self.shared.replicas_are(replicas);
        let remembers = self.mark.as_ref().is_none_or(|known| *known == mark);
        if !remembers {
            tracing::warn!("Redis has forgotten the limits; this replica tells what it has used");
        }
        // The first time there is nothing to tell it, but what was used before.
        self.mark = Some(mark);
        self.shared
            .redis_is(true, remembers, self.clock.monotonic());
        Ok(())
    }

    async fn ask(
        &self,
        connection: &mut MultiplexedConnection,
        questions: &[Question],
    ) -> Result<(), RedisError> {
        let mut pipeline = Pipeline::with_capacity(questions.len());
        for question in questions {
            self.add(&mut pipeline, question);
        }
        let answered: Result<Vec<Value>, RedisError> = pipeline.query_async(connection).await;
        let now = self.clock.monotonic();
        match answered {
            Ok(values) => {
                for (at, question) in questions.iter().enumerate() {
                    let answer = values.get(at).map_or(Answer::None, |value| {
                        read(question.what, value).unwrap_or(Answer::None)
                    });
                    self.shared.answered(question, answer, now);
                }
                self.answers.notify_waiters();
                Ok(())
            }
            Err(error) => {
                for question in questions {
                    self.shared.answered(question, Answer::None, now);
                }
                self.answers.notify_waiters();
                Err(error)
            }
        }
    }

    fn add(&self, pipeline: &mut Pipeline, question: &Question) {
        let key = self.redis.key(&format!("limits:{}", question.name));
        match question.what {
            What::Draw(quota, draw) => pipeline
                .cmd("EVALSHA")
                .arg(self.draw.get_hash())
                .arg(1)
                .arg(key)
                .arg(u64::try_from(quota.period().as_micros()).unwrap_or(u64::MAX))
                .arg(quota.count())
                .arg(quota.burst())
                .arg(draw.used)
                .arg(draw.want)
                .arg(draw.back),
            What::SetAside(most, aside) => pipeline
                .cmd("EVALSHA")
                .arg(self.set_aside.get_hash())
                .arg(1)
                .arg(key)
                .arg(&self.replica)
                .arg(most.get())
                .arg(aside.held)
                .arg(aside.want)
                .arg(u64::try_from(GONE.as_millis()).unwrap_or(u64::MAX)),
        };
    }

    fn away(&self) {
        self.shared.redis_is(false, true, self.clock.monotonic());
    }
}

fn read(what: What, value: &Value) -> Option<Answer> {
    match what {
        What::Draw(..) => {
            let (granted, left, wait): (u64, u64, u64) =
                redis::from_redis_value(value.clone()).ok()?;
            Some(Answer::Drawn(Drawn {
                granted,
                left,
                wait: u128::from(wait) * 1000,
            }))
        }
        What::SetAside(..) => redis::from_redis_value(value.clone())
            .ok()
            .map(Answer::Slots),
    }
}
