// Mathematics on whole registers: the formulas of math.h, for kernels that hold their values in registers.
#pragma once

#include "simd/lanes.h"
#include "simd/math.h"

namespace fastnn {
namespace {

// e^r on [-ln 2 / 2, ln 2 / 2].
inline Values<float> exp_small(Values<float> r) {
  Values<float> p = r * 1.98459995e-4f + 1.39406230e-3f;
  p = p * r + 8.33338872e-3f;
  p = p * r + 4.16663624e-2f;
  p = p * r + 1.66666657e-1f;
  p = p * r + 0.5f;
  return (p * r + 1.0f) * r + 1.0f;
}

// e^x, as precise as math.h's. With vscalefps the power of two takes one step instead of five.
inline Values<float> exp_lanes(Values<float> x) {
  // Outside this range the result is 0 or infinity; NaN passes through both comparisons.
  x = x > 89.0f ? 89.0f - Values<float>{} : x;
  x = x < -104.0f ? -104.0f - Values<float>{} : x;
  const Values<float> shifted = x * 1.44269504f + kRoundToInteger;
  const Values<float> n = shifted - kRoundToInteger;
  const Values<float> p = exp_small((x - n * 0.693359375f) + n * 2.12194440e-4f);
#ifdef __AVX512F__
  return Values<float>(_mm512_maskz_scalef_ps(0xffff, __m512(p), __m512(n)));
#else
  const Numbers<float> exponent = Numbers<float>(shifted) - 0x4b400000, half = exponent >> 1;
  return p * Values<float>((half + 127) << 23) * Values<float>((exponent - half + 127) << 23);
#endif
}

inline Values<double> exp_lanes(Values<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = exp_(x[i]);
  return x;
}

#ifdef __AVX512F__
// ------------------------------------------------------------------------ with AVX-512's instructions
//
// Their loops are bound by the two vector ports: half the operations of math.h's formulas is twice the speed, up to
// that of memory.

// NaN is kept.
inline Values<float> clamp_lanes(Values<float> x, float low, float high) {
  const __m512 above = _mm512_maskz_max_ps(0xffff, _mm512_set1_ps(low), __m512(x));
  return Values<float>(_mm512_maskz_min_ps(0xffff, _mm512_set1_ps(high), above));
}
inline Values<float> abs_lanes(Values<float> x) { return Values<float>(Numbers<float>(x) & 0x7fffffff); }
// What is not negative, or whose sign is x's already.
inline Values<float> with_sign_of(Values<float> x, Values<float> size) {
  return Values<float>(Numbers<float>(size) | (Numbers<float>(x) & Numbers<float>(broadcast<float>(-0.0f))));
}
inline Values<float> minimum_lanes(Values<float> low, Values<float> x) {  // keeps NaN of x
  return Values<float>(_mm512_maskz_min_ps(0xffff, __m512(low), __m512(x)));
}
// These take one Newton step from an estimate of 14 bits. Here x is not near 0, nor near the largest number.
inline Values<float> reciprocal_lanes(Values<float> x) {
  const Values<float> y = Values<float>(_mm512_maskz_rcp14_ps(0xffff, __m512(x)));
  return y + y * (1.0f - x * y);
}
// 1 / sqrt(x) of any x.
inline Values<float> rsqrt_lanes(Values<float> x) {
  const Values<float> y = Values<float>(_mm512_maskz_rsqrt14_ps(0xffff, __m512(x)));
  const Values<float> rest = 1.0f - (x * y) * y;  // NaN where y is exact
  const __mmask16 rough = _mm512_cmp_ps_mask(__m512(rest), __m512(rest), _CMP_ORD_Q);
  return Values<float>(_mm512_mask3_fmadd_ps(__m512(y * 0.5f), __m512(rest), __m512(y), rough));
}
// Of 0 and of normal x; NaN of x below 0.
inline Values<float> sqrt_lanes(Values<float> x) {
  const __mmask16 some = _mm512_cmp_ps_mask(__m512(x), _mm512_setzero_ps(), _CMP_NEQ_UQ);
  const Values<float> y = Values<float>(_mm512_maskz_rsqrt14_ps(some, __m512(x)));
  const Values<float> root = x * y;
  return root + (0.5f * y) * (x - root * root);
}

// (log(1 + f) - f) / f^2 on [-1/4, 1/2].
inline Values<float> log_ratio(Values<float> f) {
  Values<float> p = f * -4.51120213e-2f + 1.04688771e-1f;
  p = p * f - 1.31638736e-1f;
  p = p * f + 1.44783214e-1f;
  p = p * f - 1.66469991e-1f;
  p = p * f + 1.99908197e-1f;
  p = p * f - 2.50001043e-1f;
  p = p * f + 3.33334506e-1f;
  return p * f - 0.5f;
}

// x = m 2^e with m in [3/4, 3/2). The exponent of 0 and infinity is infinite, and m is 1; of a negative x m is NaN.
struct LogLanes {
  Values<float> e, f, ratio;  // log m = f + f^2 ratio, f = m - 1
  explicit LogLanes(Values<float> x) {
    const __m512 m = _mm512_maskz_getmant_ps(0xffff, __m512(x), _MM_MANT_NORM_p75_1p5, _MM_MANT_SIGN_nan);
    e = Values<float>(_mm512_maskz_getexp_ps(0xffff, __m512(x))) - Values<float>(_mm512_maskz_getexp_ps(0xffff, m));
    f = Values<float>(m) - 1.0f;
    ratio = log_ratio(f);
  }
};

// The constants are split into parts of one sign, so that an infinite e gives an infinite sum.
inline Values<float> log_lanes(Values<float> x) {
  const LogLanes parts(x);
  const Values<float> low = parts.f * parts.f * parts.ratio + parts.e * 1.42860677e-6f;
  return parts.e * 0.693145752f + (parts.f + low);
}
// The factor of f in two parts.
inline Values<float> log2_lanes(Values<float> x) {
  const LogLanes parts(x);
  const Values<float> tail = parts.f * parts.f * parts.ratio;
  return parts.e + (parts.f * 1.44269502f + (parts.f * 1.92596299e-8f + tail * 1.44269502f));
}
inline Values<float> log10_lanes(Values<float> x) {
  const LogLanes parts(x);
  const Values<float> tail = parts.f * parts.f * parts.ratio;
  const Values<float> low = parts.f * -1.01030501e-8f + (tail * 4.34294492e-1f + parts.e * 4.60503906e-6f);
  return parts.e * 3.01025391e-1f + (parts.f * 4.34294492e-1f + low);
}

// 1 + x is rounded to u; what that lost goes to the mantissa of u.
inline Values<float> log1p_lanes(Values<float> x) {
  const Values<float> u = x + 1.0f;
  const Values<float> lost = x - (u - 1.0f);  // NaN of infinity
  const __m512 m = _mm512_maskz_getmant_ps(0xffff, __m512(u), _MM_MANT_NORM_p75_1p5, _MM_MANT_SIGN_nan);
  const __m512 down = _mm512_sub_ps(_mm512_maskz_getexp_ps(0xffff, m), _mm512_maskz_getexp_ps(0xffff, __m512(u)));
  const __mmask16 inexact = _mm512_cmp_ps_mask(__m512(lost), _mm512_setzero_ps(), _CMP_NEQ_OQ);
  const Values<float> f =
      (Values<float>(m) - 1.0f) + Values<float>(_mm512_maskz_scalef_ps(inexact, __m512(lost), down));
  const Values<float> e = -Values<float>(down);
  const Values<float> result = e * 0.693145752f + (f + (f * f * log_ratio(f) + e * 1.42860677e-6f));
  return with_sign_of(x, result);
}

inline Values<float> exp2_lanes(Values<float> given) {
  const Values<float> x = clamp_lanes(given, -152.0f, 129.0f);
  const Values<float> n = (x + kRoundToInteger) - kRoundToInteger;
  return Values<float>(_mm512_maskz_scalef_ps(0xffff, __m512(exp2_small(x - n)), __m512(n)));
}

inline Values<float> sigmoid_lanes(Values<float> x) {
  const Values<float> t = clamp_lanes(-x, -87.0f, 88.0f);
  const Values<float> shifted = t * 1.44269504f + kRoundToInteger;
  const Values<float> n = shifted - kRoundToInteger;
  const Values<float> scale = Values<float>((Numbers<float>(shifted) - (0x4b400000 - 127)) << 23);
  const Values<float> p = expm1_small((t - n * 0.693359375f) + n * 2.12194440e-4f);
  const Values<float> result = 1.0f / ((p * scale + 1.0f) + scale);
  return x < -88.0f ? Values<float>{} : result;
}

// An odd f: by a polynomial in the distance of |x| from the nearest multiple of `step`, its coefficients picked from
// registers by the multiple's number. From the last one on f has rounded to a constant.
// Around 0 it is x plus a polynomial.
template <int n, int degree>
using Table = float[degree + 1][n];

template <int n, int degree>
inline Values<float> odd_lanes(Values<float> x, const Table<n, degree>& table, float step) {
  const __m512 last = _mm512_set1_ps(step * float(n - 1));
  const Values<float> a = Values<float>(_mm512_maskz_min_ps(0xffff, last, __m512(abs_lanes(x))));  // keeps NaN
  const Values<float> shifted = a * (1.0f / step) + kRoundToInteger;
  const Values<float> d = a - (shifted - kRoundToInteger) * step;
  const __m512i number = __m512i(shifted);
  const auto coefficient = [&](int power) FASTNN_INLINED {
    const __m512 low = _mm512_load_ps(table[power]);
    if constexpr (n == 16)
      return Values<float>(_mm512_maskz_permutexvar_ps(0xffff, number, low));
    else
      return Values<float>(_mm512_permutex2var_ps(low, number, _mm512_load_ps(table[power] + 16)));
  };
  Values<float> p = coefficient(degree);
#pragma GCC unroll 5
  for (int power = degree - 1; power > 0; --power) p = p * d + coefficient(power);
  p = p * d + (a < 0.5f * step ? a : coefficient(0));
  return with_sign_of(x, p);
}

// clang-format off
constexpr float kErfStep = 0.268066406f, kTanhStep = 0.296875f, kGeluSlopeStep = 0.193548381f;
alignas(64) constexpr Table<16, 5> kErfTable = {
    {0.0f, 0.295388728f, 0.551672518f, 0.744591057f, 0.870584965f, 0.941975892f, 0.977071226f, 0.992039084f, 0.99757725f, 0.999354959f, 0.999849975f, 0.999969542f, 0.999994636f, 0.999999166f, 0.999999881f, 1.0f},
    {0.128379166f, 1.05013919f, 0.846490681f, 0.590991199f, 0.3573744f, 0.187175661f, 0.0849100128f, 0.03336199f, 0.0113534676f, 0.00334648346f, 0.000854343176f, 0.000188912018f, 3.61801503e-05f, 6.00156727e-06f, 8.62268564e-07f, 4.72790043e-06f},
    {3.21695751e-07f, -0.281500936f, -0.453827947f, -0.475273877f, -0.383211732f, -0.250880748f, -0.136583537f, -0.0626128316f, -0.0243514795f, -0.00807721354f, -0.00228907051f, -0.000549978053f, -0.000124840153f, -1.86674188e-05f, 2.47549139e-07f, 0.000270377321f},
    {-0.376143813f, -0.29976052f, -0.119973294f, 0.0578076355f, 0.154797733f, 0.161781907f, 0.118134692f, 0.067194216f, 0.0310256518f, 0.0118701952f, 0.0038079829f, 0.00103201694f, 0.000237496482f, 4.65786507e-05f, 7.80624032e-06f, 0.00560260331f},
    {0.000317766302f, 0.132949784f, 0.182384595f, 0.134782508f, 0.0455683693f, -0.0242319982f, -0.0484233797f, -0.0415433012f, -0.024990391f, -0.0114913471f, -0.0044381381f, -0.00173875259f, 0.000113738504f, -0.000198632319f, -0.000204445882f, 0.0474296398f},
    {0.110828273f, 0.0764023289f, -0.00225573522f, -0.0601431467f, -0.0650898144f, -0.0352899693f, -0.00369925634f, 0.0113856848f, 0.0122228358f, 0.00766879134f, 0.00352888973f, 0.00127843372f, 0.000375756936f, 9.11968891e-05f, 1.84809887e-05f, 0.140783995f},
};
alignas(64) constexpr Table<32, 6> kTanhTable = {
    {0.0f, 0.288450211f, 0.53258729f, 0.711702287f, 0.829801917f, 0.902284443f, 0.944829464f, 0.969150901f, 0.982845008f, 0.990489602f, 0.994736671f, 0.997089863f, 0.998391807f, 0.999111593f, 0.999509275f, 0.999728978f, 0.999850333f, 0.999917328f, 0.999954343f, 0.999974787f, 0.999986053f, 0.999992311f, 0.999995768f, 0.999997675f, 0.999998689f, 0.999999285f, 0.999999583f, 0.999999762f, 0.999999881f, 0.99999994f, 0.99999994f, 1.0f},
    {2.6370503e-10f, 0.916796446f, 0.716350794f, 0.493479848f, 0.311428785f, 0.185882792f, 0.107297339f, 0.0607465394f, 0.0340156481f, 0.0189303514f, 0.0104989931f, 0.00581178302f, 0.00321375765f, 0.00177608407f, 0.000981237157f, 0.000542009657f, 0.000299362495f, 0.000165334757f, 9.13099066e-05f, 5.04271484e-05f, 2.78488315e-05f, 1.53796809e-05f, 8.49349544e-06f, 4.69056295e-06f, 2.59037756e-06f, 1.43054319e-06f, 7.90021204e-07f, 4.36291231e-07f, 2.40942938e-07f, 1.33061334e-07f, 7.34834487e-08f, 9.45827196e-06f},
    {-1.28693728e-07f, -0.26444909f, -0.381522f, -0.351205707f, -0.258429736f, -0.167719513f, -0.101400159f, -0.0588765368f, -0.0334155969f, -0.0187518317f, -0.0104591399f, -0.00578589505f, -0.00319186994f, -0.00179792789f, -0.000991812674f, -0.000557154184f, -0.000319327723f, -0.000164648503f, -9.03815526e-05f, -5.13216437e-05f, -9.59984027e-06f, -1.60713535e-05f, -2.02706997e-05f, -2.1134998e-05f, 1.02078966e-05f, -1.44332887e-06f, 1.68608331e-05f, 1.56665574e-05f, -1.24349572e-06f, -5.6344179e-06f, 1.80865936e-05f, 0.000728531973f},
    {-0.333323151f, -0.229310751f, -0.0355996005f, 0.0854618326f, 0.110632993f, 0.0893686637f, 0.0600190833f, 0.0368079431f, 0.0215201266f, 0.0122619579f, 0.00688907458f, 0.00384071469f, 0.00213214732f, 0.00118090468f, 0.000653182215f, 0.000361048384f, 0.000199485832f, 0.000110195273f, 6.0864284e-05f, 3.36155608e-05f, 1.85649733e-05f, 1.02528729e-05f, 5.66229892e-06f, 3.12698035e-06f, 1.72689624e-06f, 9.53683525e-07f, 5.2668031e-07f, 2.90859276e-07f, 1.60625461e-07f, 8.87059812e-08f, 4.89883654e-08f, 0.0207678378f},
    {-0.000294580997f, 0.154190674f, 0.146438897f, 0.0556635149f, -0.00500753848f, -0.0246947985f, -0.0202522166f, -0.0155769596f, -0.0119653577f, -0.00571549125f, -0.00154420629f, -0.00296245748f, -0.00304232561f, 0.00218975684f, 0.000985557097f, 0.00163343071f, 0.00227376586f, -0.000134856775f, -0.000140046992f, 8.94434415e-05f, -0.00217380398f, 7.69291e-05f, 0.00139410293f, 0.00194896199f, -0.00151890505f, 1.03982802e-06f, -0.00209388463f, -0.00191015308f, 0.000118835509f, 0.000652488205f, -0.0021540462f, 0.268310636f},
    {0.137192741f, 0.0519258417f, -0.0490539186f, -0.0572472103f, -0.0254105814f, -0.00340722199f, 0.00397960423f, 0.00460978225f, 0.00341492402f, 0.0021720014f, 0.00129381707f, 0.000743827084f, 0.000420114608f, 0.000234051899f, 0.000130615968f, 7.2048264e-05f, 3.98977063e-05f, 2.20863349e-05f, 1.22164847e-05f, 6.73592058e-06f, 3.72563886e-06f, 2.05536662e-06f, 1.13348392e-06f, 6.28186058e-07f, 3.46695771e-07f, 1.91513493e-07f, 1.05567196e-07f, 5.83508672e-08f, 3.2307355e-08f, 1.78361006e-08f, 9.84074333e-09f, 1.59978127f},
    {-0.0234189928f, -0.0690094605f, -0.0396247506f, 0.0313028246f, -0.00240844535f, 0.00664447108f, -0.0779363811f, -0.0145135261f, 0.0577653386f, -0.00597239984f, -0.0550065525f, 0.03157904f, 0.059132617f, -0.0831056386f, -0.0392400064f, -0.0542314723f, -0.0709482506f, 0.00237694499f, 0.00327214459f, -0.00317771174f, 0.0646896064f, -0.00245306548f, -0.0417504013f, -0.0582953654f, 0.0453694388f, -4.53923458e-05f, 0.0625718161f, 0.0570841841f, -0.00355403568f, -0.0195021797f, 0.0643770248f, 3.57967949f},
};
alignas(64) constexpr Table<32, 5> kGeluSlopeTable = {
    {0.0f, 0.15251707f, 0.29393965f, 0.4149688f, 0.5094713f, 0.5751296f, 0.6132898f, 0.62814176f, 0.6255207f, 0.6116608f, 0.5921783f, 0.571441f, 0.55234534f, 0.5364224f, 0.5241404f, 0.51527387f, 0.50924003f, 0.5053511f, 0.5029694f, 0.50158f, 0.5008066f, 0.5003953f, 0.500186f, 0.5000841f, 0.50003654f, 0.50001526f, 0.50000614f, 0.5000024f, 0.5000009f, 0.5000003f, 0.5000001f, 0.5f},
    {-0.20211545f, 0.76841146f, 0.684826f, 0.5604702f, 0.414075f, 0.26562804f, 0.13240895f, 0.02619698f, -0.047823224f, -0.09050543f, -0.10703451f, -0.10476759f, -0.09126321f, -0.072903804f, -0.054233942f, -0.03791066f, -0.02504426f, -0.015696421f, -0.009359256f, -0.0053200964f, -0.0028874376f, -0.0014981313f, -0.0007437952f, -0.00035364335f, -0.00016112703f, -7.038783e-05f, -2.9495237e-05f, -1.186044e-05f, -4.5781517e-06f, -1.6968622e-06f, -6.0406046e-07f, 0.0f},
    {1.12327974e-07f, -0.15014364f, -0.27583206f, -0.3584236f, -0.38916793f, -0.3702362f, -0.31293395f, -0.23362926f, -0.14925678f, -0.073600054f, -0.015068476f, 0.023447901f, 0.043543216f, 0.049368724f, 0.045961205f, 0.03790193f, 0.028559338f, 0.019959962f, 0.013074857f, 0.008075212f, 0.004721507f, 0.0026221168f, 0.0013873333f, 0.00069699425f, 0.00033350207f, 0.0001516295f, 6.053538e-05f, 1.953151e-05f, 4.3274526e-06f, 1.052963e-05f, -3.2039438e-06f, 0.0f},
    {-0.26596612f, -0.24400519f, -0.18344018f, -0.098511204f, -0.008062491f, 0.06987742f, 0.122686416f, 0.14552051f, 0.14105242f, 0.11715131f, 0.08366795f, 0.049523223f, 0.020888021f, 0.00066217215f, -0.011020748f, -0.015767105f, -0.015859308f, -0.013463468f, -0.010210185f, -0.00709591f, -0.004582519f, -0.0027733138f, -0.0015816997f, -0.0008534624f, -0.00043694818f, -0.00021272046f, -9.8642195e-05f, -4.3629632e-05f, -1.8426674e-05f, -7.4380123e-06f, -2.8717404e-06f, 0.0f},
    {7.9471625e-05f, 0.055366997f, 0.0978049f, 0.117054194f, 0.11213134f, 0.08545574f, 0.04898246f, 0.011215787f, -0.020592488f, -0.038518526f, -0.044724207f, -0.040469807f, -0.032349408f, -0.02090597f, -0.009419753f, -0.0018988148f, 0.0019368083f, 0.004877018f, 0.0052313698f, 0.0044333935f, 0.00330178f, 0.0021655543f, 0.0011982063f, 0.0008579831f, 0.00059849827f, 0.0004317518f, 0.00070196565f, 0.000787272f, 0.0006099865f, -0.00049105287f, 0.00040160873f, 0.0f},
    {0.0593084f, 0.05243424f, 0.032978162f, 0.0072768964f, -0.017248962f, -0.03433069f, -0.04076265f, -0.036954902f, -0.026124684f, -0.012684684f, -0.0005992885f, 0.007683572f, 0.011498298f, 0.011570873f, 0.009319936f, 0.00619574f, 0.0032648607f, 0.001080609f, -0.00023813681f, -0.0008365221f, -0.0009576154f, -0.00083016744f, -0.00061771536f, -0.00041264438f, -0.0002529081f, -0.00014398558f, -7.6743025e-05f, -3.849733e-05f, -1.8245239e-05f, -8.19283e-06f, -3.4933291e-06f, 0.0f},
};
// clang-format on

inline Values<float> erf_lanes(Values<float> x) { return odd_lanes<16, 5>(x, kErfTable, kErfStep); }
inline Values<float> tanh_lanes(Values<float> x) { return odd_lanes<32, 6>(x, kTanhTable, kTanhStep); }
// The derivative of x Phi(x), Phi(x) + x phi(x): it is odd around (0, 1/2), and rounds to 1 from 6 on.
inline Values<float> gelu_slope_lanes(Values<float> x) {
  return odd_lanes<32, 5>(x, kGeluSlopeTable, kGeluSlopeStep) + 0.5f;
}

// As math.h's Quadrant, but with pi/2 in three parts: n times the first is exact beside x, and so is the difference.
struct QuadrantLanes {
  Values<float> r;
  Numbers<float> number;  // in its low bits
  explicit QuadrantLanes(Values<float> x) {
    const Values<float> shifted = x * 0.636619772f + kRoundToInteger;
    const Values<float> n = shifted - kRoundToInteger;
    const Values<float> rest = ((x - n * 1.57079637f) + n * 4.37113883e-8f) + n * 1.71512451e-15f;
    number = Numbers<float>(shifted);
    r = x == 0.0f ? x : rest;  // keeps the sign of 0
  }
};
inline Values<float> negated_where(Numbers<float> number, Values<float> x) {  // bit 1 of the number tells
  return Values<float>(Numbers<float>(x) ^ ((number << 30) & Numbers<float>(broadcast<float>(-0.0f))));
}
inline Values<float> sin_lanes(Values<float> x) {
  const QuadrantLanes q(x);
  const Values<float> sine = x == 0.0f ? x : sin_small(q.r);  // keeps the sign of 0
  return negated_where(q.number, (q.number & 1) != 0 ? cos_small(q.r) : sine);
}
inline Values<float> cos_lanes(Values<float> x) {
  const QuadrantLanes q(x);
  return negated_where(q.number + 1, (q.number & 1) != 0 ? sin_small(q.r) : cos_small(q.r));
}
inline Values<float> tan_lanes(Values<float> x) {
  const QuadrantLanes q(x);
  const Values<float> value = tan_small(q.r);
  return (q.number & 1) != 0 ? -reciprocal_lanes(value) : value;
}

// As math.h's ArcSineParts.
struct ArcSineLanes {
  Numbers<float> far;
  Values<float> r, tail;
  explicit ArcSineLanes(Values<float> a) : far(a > 0.5f) {
    const Values<float> z = far ? 0.5f - 0.5f * a : a * a;
    r = far ? sqrt_lanes(z) : a;
    tail = asin_excess(z) * r;
  }
};
inline Values<float> asin_lanes(Values<float> x) {
  const ArcSineLanes s(abs_lanes(x));
  const Values<float> far = (kThreeHalves - 2.0f * s.r) + (kHalfPiAbove - 2.0f * s.tail);
  return with_sign_of(x, s.far ? far : s.r + s.tail);
}
inline Values<float> acos_lanes(Values<float> x) {
  const ArcSineLanes s(abs_lanes(x));
  const Values<float> r = with_sign_of(x, s.r), tail = with_sign_of(x, s.tail);
  const Values<float> near = (kThreeHalves - r) + (kHalfPiAbove - tail), far = 2.0f * (r + tail);
  return s.far ? (x < 0.0f ? (2.0f * kThreeHalves + far) + 2.0f * kHalfPiAbove : far) : near;
}
inline Values<float> atan_lanes(Values<float> x) {
  const Values<float> a = minimum_lanes(broadcast<float>(1e30f), abs_lanes(x));
  const Numbers<float> far = a > 1.0f;
  const Values<float> value = atan_small(far ? -reciprocal_lanes(a) : a);
  return with_sign_of(x, far ? (value + kHalfPiRest) + kHalfPi : value);
}
#endif

}  // namespace
}  // namespace fastnn
