// Steps of CartPole, by the operations of pl_rl/envs/native.py in their order.
#include <cmath>
#include <cstddef>
#include <cstdint>

// NumPy rounds a product and a sum each; contracted to FMA they would be rounded once.
#ifdef __clang__
#pragma clang fp contract(off)
#else
#pragma GCC optimize("fp-contract=off")
#endif

struct Constants {
    double gravity, force, pole, total, length, pole_length, tau, most_distance, most_angle;
};

extern "C" void move(const Constants* constants, std::size_t count, const std::int64_t* actions, const double* cosines,
                     const double* sines, double* state, float* observations, bool* failed) {
    const Constants c = *constants;
    double *x = state, *x_dot = state + count, *theta = state + 2 * count, *theta_dot = state + 3 * count;
    for (std::size_t i = 0; i < count; ++i) {
        const double cosine = cosines[i], sine = sines[i];
        const double force = actions[i] ? c.force : -c.force;
        const double temp = (force + c.pole_length * (theta_dot[i] * theta_dot[i]) * sine) / c.total;
        const double acceleration = (c.gravity * sine - cosine * temp) /
                                    (c.length * (4.0 / 3.0 - c.pole * (cosine * cosine) / c.total));
        x[i] += c.tau * x_dot[i];
        theta[i] += c.tau * theta_dot[i];
        x_dot[i] += c.tau * (temp - c.pole_length * acceleration * cosine / c.total);
        theta_dot[i] += c.tau * acceleration;
        for (std::size_t j = 0; j < 4; ++j) observations[4 * i + j] = static_cast<float>(state[j * count + i]);
        failed[i] = std::abs(x[i]) > c.most_distance || std::abs(theta[i]) > c.most_angle;
    }
}
