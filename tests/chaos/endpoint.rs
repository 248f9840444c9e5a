//! Who is told of what happens: an endpoint for events that fails in every way that there is, at times.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::response::{IntoResponse, Response};
use http::StatusCode;

use crate::{
    berth::own_address,
    dice::Dice,
    hook::{self, Hook},
    told::Taken,
    weather::Tally,
};

/// What the endpoint is called in the configuration.
pub(crate) const NAME: &str = "chaos";

/// How it takes what it is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Mood {
    #[default]
    Takes,
    /// It takes some of it and answers 500 to the rest.
    Flaps,
    /// It answers 500.
    Breaks,
    /// It never answers.
    Hangs,
    /// It takes it, and answers when nobody waits for that any more.
    Dawdles,
    /// Nobody listens.
    Away,
}

/// What it took so far, and what it takes now.
#[derive(Debug, Default)]
struct Heard {
    mood: Mood,
    sent: usize,
    taken: Vec<Taken>,
}

impl Heard {
    fn hear(&mut self, told: &hook::Told) -> Response {
        self.sent += 1;
        let takes = match self.mood {
            Mood::Takes | Mood::Dawdles => true,
            Mood::Flaps => self.sent.is_multiple_of(2),
            Mood::Breaks | Mood::Hangs | Mood::Away => false,
        };
        if !takes {
            return StatusCode::INTERNAL_SERVER_ERROR.into_response();
        }
        let event = &told.json()["events"][0];
        let (target, id) = (&event["target"], told.header("webhook-id").to_owned());
        // Events of manifests alone may be lost with an index.
        if let Some(tag) = target["tag"].as_str() {
            let tag = (target["repository"].as_str().unwrap().to_owned(), tag.to_owned());
            let digest = (event["action"] == "push").then(|| target["digest"].as_str().unwrap().to_owned());
            self.taken.push(Taken { id, tag, to: digest });
        }
        StatusCode::NO_CONTENT.into_response()
    }
}

/// The endpoint.
pub(crate) struct Endpoint {
    heard: Arc<Mutex<Heard>>,
    address: SocketAddr,
    hook: Option<Hook>,
    tally: Tally,
}

impl Endpoint {
    pub(crate) async fn start(tally: Tally) -> Self {
        let hook = Hook::at(own_address().into()).await;
        let mut endpoint = Self { heard: Arc::default(), address: hook.address, hook: None, tally };
        endpoint.open(hook);
        endpoint
    }

    /// What makes Berth tell it of everything, as environment variables.
    pub(crate) fn settings(&self) -> Vec<(&'static str, String)> {
        vec![
            ("BERTH_EVENTS__ENDPOINTS__CHAOS__FORMAT", "distribution".to_owned()),
            ("BERTH_EVENTS__ENDPOINTS__CHAOS__URL", format!("http://{}/hook", self.address)),
            ("BERTH_EVENTS__ENDPOINTS__CHAOS__ALLOW", "127.0.0.0/8".to_owned()),
            ("BERTH_EVENTS__ENDPOINTS__CHAOS__TIMEOUT", "1s".to_owned()),
        ]
    }

    /// What it took so far.
    pub(crate) fn taken(&self) -> Vec<Taken> {
        self.heard.lock().unwrap().taken.clone()
    }

    /// Fails again and again until the end, and is well then.
    pub(crate) async fn vex(&mut self, mut dice: Dice, end: Instant) {
        let moods = [Mood::Flaps, Mood::Breaks, Mood::Hangs, Mood::Dawdles, Mood::Away];
        while Instant::now() < end {
            let mood = *dice.pick(&moods);
            self.tally.add(&format!("endpoint: {mood:?}").to_lowercase());
            for (mood, longest) in [(mood, 4000), (Mood::Takes, 8000)] {
                self.be(mood).await;
                let span = dice.span(500..longest);
                tokio::time::sleep(span.min(end.saturating_duration_since(Instant::now()))).await;
            }
        }
        self.be(Mood::Takes).await;
    }

    fn open(&mut self, hook: Hook) {
        let heard = Arc::clone(&self.heard);
        hook.answer(move |told| heard.lock().unwrap().hear(told));
        self.hook = Some(hook);
    }

    async fn be(&mut self, mood: Mood) {
        self.heard.lock().unwrap().mood = mood;
        if mood == Mood::Away {
            self.hook = None;
            // Whoever listened has gone before another one can.
            tokio::time::sleep(Duration::from_millis(100)).await;
            return;
        }
        if self.hook.is_none() {
            let hook = Hook::listening(self.address).await;
            self.open(hook);
        }
        if let Some(hook) = &self.hook {
            hook.answers(!matches!(mood, Mood::Hangs | Mood::Dawdles));
            hook.forget();
        }
    }
}
