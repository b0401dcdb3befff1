use super::*;

#[test]
fn smoke() {
    let mut total = Counts::default();
    for level in [FaultLevel::None, FaultLevel::Some, FaultLevel::All] {
        for seed in 0..10 {
            let config = SimConfig::draw(seed, 40, level);
            let start = std::time::Instant::now();
            match run(config.clone()) {
                Ok(report) => {
                    println!("{level:?} {seed}: {:?} {:?}", start.elapsed(), report.counts.events);
                    total.add(&report.counts);
                }
                Err(error) => println!("{level:?} {seed}: {error}\n   {}", config.command()),
            }
        }
    }
    for (name, value, help) in total.rows() {
        println!("{name:24} {value:>12} {help}");
    }
}
