//! What the drill tells its processes, a line each, and what they answer.

use std::io::BufRead;

use tokio::sync::mpsc;

/// A line `NUMBER WORDS`, to be answered by a line `NUMBER WORDS`.
#[derive(Debug)]
pub(super) struct Order {
    number: String,
    pub(super) words: String,
}

impl Order {
    pub(super) fn answer(&self, words: &str) {
        println!("{} {words}", self.number);
    }
}

/// The orders on standard input. When it closes the drill is gone, and this process ends.
pub(super) fn orders() -> mpsc::Receiver<Order> {
    let (sender, orders) = mpsc::channel(16);
    // A thread, since tokio's standard input would hold up the end of the runtime.
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            let (number, words) = line.split_once(' ').unwrap_or((&line, ""));
            let order = Order { number: number.to_owned(), words: words.to_owned() };
            if sender.blocking_send(order).is_err() {
                // Its process has better to do than to listen: it is about to end.
                return;
            }
        }
        std::process::exit(0);
    });
    orders
}
