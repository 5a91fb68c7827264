// Which instructions this processor has. Nothing here is compiled to any of those that it asks for, so that the library can
// be loaded, and asked, on every processor.
#include <cpuid.h>

#pragma GCC visibility push(default)
extern "C" {
// Whether this processor, and the operating system, have the instructions that the library is compiled for.
[[gnu::target("no-avx")]] int tome_supported() {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("fma")
#ifdef TOME_BF16
           && __builtin_cpu_supports("avx512bf16")
#endif
        ;
}

// Whether this processor multiplies bfloat16 matrices in tiles (Intel's manual, volume 2, CPUID leaf 7).
[[gnu::target("no-avx")]] int tome_has_amx() {
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && d & 1u << 22;
}
}
#pragma GCC visibility pop
