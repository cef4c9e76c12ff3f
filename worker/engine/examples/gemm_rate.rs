//! The f32 large-matrix rate of this machine: `gemm_rate [THREADS]` prints `figure machine_gemm_gflops`.

use longstrap_engine::measure_gemm_gflops;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let threads = std::env::args().nth(1).map_or(Ok(2), |t| t.parse())?;
    println!("figure machine_gemm_gflops {:.1}", measure_gemm_gflops(threads, 2.0)?);
    Ok(())
}
